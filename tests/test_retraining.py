"""Training through a projection, with a frozen support, with frozen clusters: what is held stays held."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jpq_jax

SHAPE = (12, 10)


def target() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def sparse(bits: int) -> jax.Array:
    params = {"kernel": target()}
    codes = jpq_jax.project(params, jpq_jax.Budget(bits=40 * bits))
    return jpq_jax.dequantize(codes)["kernel"]


def train(optimizer: Any, kernel: jax.Array, steps: int) -> tuple[Any, Any]:
    """Toward the target, from noisy gradients."""

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        noise = 0.1 * jax.random.normal(key, SHAPE)
        gradients = {"kernel": params["kernel"] - target() + noise, "bias": params["bias"] - 1}
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": kernel, "bias": jnp.zeros(3)}
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), steps):
        params, state = step(params, state, key)
    return params, state


def test_a_pruned_weight_never_revives() -> None:
    decayed = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.05, momentum=0.9))
    kernel = sparse(3)
    params, _ = train(optax.chain(decayed, jpq_jax.mask_updates()), kernel, 1000)
    np.testing.assert_array_equal(params["kernel"] == 0, kernel == 0)
    assert float(jnp.max(jnp.abs(params["kernel"] - kernel))) > 0.01
    np.testing.assert_allclose(params["bias"], 1, atol=0.1)
    unmasked, _ = train(decayed, kernel, 10)
    assert int(jnp.sum(unmasked["kernel"] != 0)) > int(jnp.sum(kernel != 0))


def test_weights_of_a_cluster_stay_equal_to_the_bit() -> None:
    kernel = sparse(2)
    sgd = optax.sgd(0.02, momentum=0.9)
    params, _ = train(optax.chain(sgd, jpq_jax.cluster_updates()), kernel, 300)
    values, cluster = np.unique(np.asarray(kernel), return_inverse=True)
    moved, again = np.unique(np.asarray(params["kernel"]), return_inverse=True)
    assert len(moved) == len(values)
    np.testing.assert_array_equal(cluster, again)
    assert 0.0 in moved
    # Each cluster goes to the mean of its targets, which is the optimum.
    for value in moved[moved != 0]:
        mine = np.asarray(params["kernel"]) == value
        assert value == pytest.approx(float(np.asarray(target())[mine].mean()), abs=0.1)


def test_too_many_values_for_clusters() -> None:
    params = {"kernel": jnp.arange(1.0, 301).reshape(30, 10)}
    with pytest.raises(ValueError, match=r"'kernel'.*more than 256"):
        jpq_jax.cluster_updates().init(params)


def test_held_bits_and_support() -> None:
    kernel = sparse(2)
    inner = optax.chain(optax.sgd(0.05, momentum=0.9), jpq_jax.mask_updates())
    optimizer = jpq_jax.latent(inner, jpq_jax.held(1), every=5)
    params, state = train(optimizer, kernel, 200)
    assert not (np.asarray(params["kernel"])[np.asarray(kernel) == 0]).any()
    assert len(np.unique(np.asarray(params["kernel"]))) <= 3
    codes = jpq_jax.validate(jpq_jax.finalize(params, state))
    np.testing.assert_allclose(jpq_jax.dequantize(codes)["kernel"], params["kernel"], rtol=1e-6)
    assert int(codes["kernel"].bits) == 1


def test_held_bits_of_each_leaf() -> None:
    params = {"a": target(), "b": target()}
    optimizer = jpq_jax.latent(optax.sgd(0.1), jpq_jax.held([1, 3]))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    codes = jpq_jax.finalize(optax.apply_updates(params, updates), state)
    assert [int(codes[name].bits) for name in "ab"] == [1, 3]
    with pytest.raises(ValueError, match="3 bit-widths, expected one for each of 2"):
        jpq_jax.latent(optax.sgd(0.1), jpq_jax.held([1, 2, 3])).init(params)


@pytest.mark.parametrize("bits", [0, 9, [1, 0], []])
def test_held_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(ValueError, match="expected 1 to 8"):
        jpq_jax.held(bits)


@pytest.mark.parametrize("make", [jpq_jax.latent, jpq_jax.project_params])
def test_plans_need_a_positive_interval(make: Any) -> None:
    arguments = (optax.sgd(0.1),) if make is jpq_jax.latent else ()
    with pytest.raises(ValueError, match="every=0"):
        make(*arguments, jpq_jax.held(1), every=0)


def test_latents_let_small_steps_add_up() -> None:
    """Projected descent undoes steps that carry no weight over a border; latents get there."""
    planner = jpq_jax.joint(jpq_jax.Budget(bits=60))
    start = target()[::-1]
    through, state = train(jpq_jax.latent(optax.sgd(0.02), planner), start, 300)
    projected, _ = train(optax.chain(optax.sgd(0.02), jpq_jax.project_params(planner)), start, 300)

    def error(kernel: jax.Array) -> float:
        return float(jnp.sum((kernel - target()) ** 2))

    assert error(through["kernel"]) < 0.8 * error(projected["kernel"])
    codes = jpq_jax.finalize(through, state)
    assert jpq_jax.rate_bits(codes) <= 60
    assert error(jpq_jax.dequantize(codes)["kernel"]) < 0.8 * error(projected["kernel"])


def test_the_statistics_can_be_logged() -> None:
    planner = jpq_jax.joint(jpq_jax.Budget(bits=60))
    _, state = train(jpq_jax.latent(optax.sgd(0.01), planner, every=1), target(), 3)
    assert 55 <= int(optax.tree.get(state, "joint_bits_used")) <= 60
    assert 0.05 < float(optax.tree.get(state, "joint_density")) < 0.51
    assert 0 < float(optax.tree.get(state, "joint_distortion")) < 1
    assert float(optax.tree.get(state, "joint_multiplier")) > 0
