"""Mixed precision by channels, against brute force."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jpq_jax
from jpq_jax.projection.channelwise import fitted


def weights(seed: int = 0, shape: tuple[int, ...] = (3, 4, 6)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def codes_by(bits: Any, w: Any) -> jpq_jax.Codes:
    planner = jpq_jax.channelwise({"kernel": bits})
    optimizer = jpq_jax.latent(optax.sgd(0.1), planner)
    params = {"kernel": jnp.asarray(w)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    reached = optax.apply_updates(params, updates)
    return jpq_jax.validate(jpq_jax.finalize(reached, state))["kernel"]


def least_error(w: np.ndarray, bits: int) -> float:
    """Over all steps, by trying a great many, each moved to its numbers' least squares."""
    if bits == 0:
        return float((w**2).sum())
    most, best = 2 ** (bits - 1), np.inf
    for step in np.abs(w).max() * np.linspace(0.001, 2, 4000):
        q = np.clip(np.round(w / step), -most, most)
        if q.any():
            best = min(best, ((w - (w @ q) / (q @ q) * q) ** 2).sum())
    return float(best)


def test_each_channel_has_its_bits():
    bits = np.array([0, 1, 2, 3, 8, 5])
    w = weights()
    codes = codes_by(bits, w)
    found = np.asarray(jpq_jax.dequantize({"kernel": codes})["kernel"])
    for channel, b in enumerate(bits):
        values = np.unique(found[..., channel])
        assert len(values[values != 0]) <= 2**b
        error = ((found[..., channel] - w[..., channel]) ** 2).sum()
        assert error <= 1.15 * least_error(w[..., channel].ravel().astype(float), b) + 1e-6
    assert not found[..., 0].any()
    assert int(codes.bits) == 8


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**16),
    st.integers(0, 8),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    st.sampled_from(["normal", "one value", "zeros", "one large"]),
)
def test_the_error_is_about_the_least(seed: int, bits: int, scale: float, kind: str):
    w = weights(seed, (12, 1)).astype(np.float64)
    if kind == "one value":
        w = np.ones_like(w)
    elif kind == "zeros":
        w = np.zeros_like(w)
    elif kind == "one large":
        w[0] = 30.0
    step, error = fitted(jnp.asarray(w * scale, jnp.float32), jnp.array([bits]))
    assert np.isfinite(step).all()
    if scale in (1e-3, 1.0):  # whose squares float32 holds
        least = least_error(w.ravel(), bits) if w.any() else 0.0
        got, energy = float(error[0]) / scale**2, (w**2).sum()
        assert least - 1e-4 * energy <= got <= 1.3 * least + 2e-3 * energy


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"kernel": [1, 9]}, "integers from 0 to 8"),
        ({"kernel": [0.5, 1]}, "integers from 0 to 8"),
        ({"kernel": [1, 1], "kernle": [1, 1]}, r"\['kernle'\], which are none of"),
        ({}, "leaf 'kernel' of shape"),
        ({"kernel": [1, 1, 1]}, r"shape \(3,\), expected \(2,\)"),
    ],
)
def test_bits_that_do_not_fit(bits: Any, message: str):
    params = {"kernel": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=message):
        jpq_jax.latent(optax.sgd(0.1), jpq_jax.channelwise(bits)).init(params)


def test_trained_through():
    """Straight through the grid of one bit, toward a target that it can reach."""
    signs = np.sign(weights(1, (16, 2)))
    aim = jnp.asarray(signs * np.array([0.5, 2.0], np.float32))
    optimizer = jpq_jax.latent(optax.sgd(0.1), jpq_jax.channelwise({"kernel": [1, 1]}), every=5)
    params = {"kernel": jnp.asarray(weights(2, (16, 2)))}
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update({"kernel": params["kernel"] - aim}, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(200):
        params, state = step(params, state)
    found = jpq_jax.dequantize(jpq_jax.finalize(params, state))["kernel"]
    np.testing.assert_allclose(found, aim, atol=0.02)
