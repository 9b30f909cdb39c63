"""Values for clustering alone, against exhaustive searches in float64."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jpq_jax


def clustered(w: Any, **options: Any) -> jpq_jax.Codes:
    params = {"kernel": jnp.asarray(w)}
    optimizer = jpq_jax.latent(optax.sgd(0.0), jpq_jax.clustering(**options))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    codes = jpq_jax.validate(jpq_jax.finalize(optax.apply_updates(params, updates), state))
    return codes["kernel"]


def weights_of(codes: jpq_jax.Codes) -> np.ndarray:
    return np.asarray(jpq_jax.dequantize({"w": codes})["w"], np.float64)


def error(w: np.ndarray, q: np.ndarray) -> float:
    return float(((w.astype(np.float64) - q) ** 2).sum())


def at_nearest(w: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values[np.abs(w[..., None] - values).argmin(-1)]


def normal(size: int = 1200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size // 10, 10)).astype(np.float32)


def pattern(grid: str, bits: int, zero: bool) -> np.ndarray:
    half = np.arange(2 ** (bits - 1))
    side = 2.0**-half if grid == "power-of-two" else half + (1 if zero else 0.5)
    return np.concatenate([-side, side, [0.0] if zero else []])


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("grid", ["uniform", "power-of-two"])
@pytest.mark.parametrize("bits", [1, 4])
def test_steps_are_the_best_of_an_exhaustive_search(bits: int, grid: str, zero: bool):
    w = normal()
    codes = clustered(w, bits=bits, grid=grid, zero=zero)
    own = pattern(grid, bits, zero)
    if grid == "power-of-two":
        steps = 2.0 ** np.arange(-20, 5)
    else:
        steps = np.abs(w).max() / own.max() * 2.0 ** np.arange(-9, 1.5, 0.01)
    best = min(error(w, at_nearest(w, own * step)) for step in steps)
    assert error(w, weights_of(codes)) <= 1.01 * best + 1e-9
    assert int(codes.bits) <= bits


def test_powers_of_two_are_powers_of_two():
    values = np.asarray(clustered(normal() * 0.037, bits=3, grid="power-of-two").codebook)
    mantissas = np.frexp(values[values != 0])[0]
    assert set(np.abs(mantissas)) == {0.5}


@pytest.mark.parametrize("grid", ["codebook", "uniform", "power-of-two"])
def test_without_zero_no_weight_is_pruned_but_those_that_are_zero(grid: Any):
    w = normal()
    w[:5] = 0
    codes = clustered(w, bits=2, grid=grid, zero=False)
    np.testing.assert_array_equal(np.asarray(codes.code) == 0, w == 0)
    assert len(np.unique(np.asarray(codes.code)[w != 0])) <= 4


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-40, 40).filter(bool), min_size=4, max_size=8), st.integers(1, 2))
def test_values_are_near_the_best_clusters(numbers: list[int], bits: int):
    w = np.array(numbers, np.float32).reshape(1, -1)
    ordered = np.sort(w.ravel().astype(np.float64))
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(numbers) + 1), 2**bits - 1):
        parts = [part for part in np.split(ordered, cuts) if part.size]
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    got = error(w, weights_of(clustered(w, bits=bits, zero=False)))
    spread = float(((ordered - ordered.mean()) ** 2).sum())
    assert got <= best + 0.35 * spread + 1e-6  # a local minimum
    if len(set(numbers)) <= 2:
        assert got <= 1e-3 * (1 + spread)


def exact_error(ordered: np.ndarray, values: int) -> float:
    """Least squared error at so many values, by dynamic programming in float64."""
    n = len(ordered)
    first, second = (np.concatenate([[0.0], np.cumsum(ordered**k)]) for k in (1, 2))
    start, end = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    size = np.maximum(end - start, 1)
    of_part = second[end] - second[start] - (first[end] - first[start]) ** 2 / size
    of_part = np.where(end >= start, of_part, np.inf)
    best = np.where(np.arange(n + 1) == 0, 0.0, np.inf)
    for _ in range(values):
        best = np.min(best[:, None] + of_part, axis=0)
    return float(best[-1])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_value_is_lost_in_the_hole_that_pruning_leaves(bits: int):
    draw = np.random.default_rng(bits)
    w = draw.normal(size=20_000).astype(np.float32)
    w = np.append(w[np.abs(w) > 2.5], np.float32(9.0))
    codes = clustered(w.reshape(1, -1), bits=bits, zero=False)
    got = weights_of(codes)
    assert len(np.unique(got)) == 2**bits
    assert error(w, got) <= 1.3 * exact_error(np.sort(w.astype(np.float64)), 2**bits)


@pytest.mark.parametrize("grid", ["codebook", "uniform", "power-of-two"])
@pytest.mark.parametrize("zero", [True, False])
def test_any_scale(grid: Any, zero: bool):
    w = normal(300)
    for scale in (1e-30, 1e30):
        got = weights_of(clustered(w * np.float32(scale), bits=4, grid=grid, zero=zero)) / scale
        assert error(w, got) < 0.12 * error(w, 0 * w)


@pytest.mark.parametrize("w", [np.zeros((3, 2)), np.full((3, 2), -2.5), np.array([[0.0, 7.0]])])
@pytest.mark.parametrize("grid", ["codebook", "uniform", "power-of-two"])
@pytest.mark.parametrize("zero", [True, False])
def test_few_values(w: np.ndarray, grid: Any, zero: bool):
    codes = clustered(w.astype(np.float32), bits=2, grid=grid, zero=zero)
    got = weights_of(codes)
    np.testing.assert_array_equal(got == 0, w == 0)
    if grid != "power-of-two":
        np.testing.assert_allclose(got, w, rtol=1e-3)


@pytest.mark.parametrize("refit", [True, False])
def test_bits_by_path_and_values_that_are_refitted_or_kept(refit: bool):
    params = {"a": jnp.asarray(normal()), "b": jnp.asarray(normal(seed=1))}
    planner = jpq_jax.clustering({"b": 3, "a": 1}, refit=refit)
    optimizer = jpq_jax.latent(optax.sgd(1.0), planner, every=1)
    state = optimizer.init(params)
    values = []
    for _ in range(3):
        gradients = jax.tree.map(lambda w: 0.1 * w, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        codes = jpq_jax.finalize(params, state)
        values.append(optax.tree.get(state, "clustered_levels"))
    assert [int(codes[name].bits) for name in "ab"] == [1, 3]
    if refit:
        latents = np.asarray(optax.tree.get(state, "latents")["a"])
        code, codebook = np.asarray(codes["a"].code), np.asarray(codes["a"].codebook)
        for value in np.unique(code[code != 0]):
            assert codebook[value] == pytest.approx(latents[code == value].mean(), rel=1e-2)
        assert np.abs(values[0] - values[-1]).max() > 0.01
    else:
        np.testing.assert_array_equal(values[0], values[-1])
    with pytest.raises(ValueError, match=r"got bits for \['a'\], expected for each of"):
        jpq_jax.latent(optax.sgd(1.0), jpq_jax.clustering({"a": 2})).init(params)


def test_bad_grids():
    with pytest.raises(ValueError, match="grid='log'"):
        jpq_jax.clustering(2, grid="log")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected 1 to 6"):
        jpq_jax.clustering(7, grid="power-of-two")
