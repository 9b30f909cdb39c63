"""Pruning alone: the largest weights against a sort, and the planner's numbers of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jpq_jax
from jpq_jax.allocation.knapsack import kept_by, magnitude_of
from jpq_jax.allocation.largest import largest_of_all, largest_of_each

numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 1e-42, 3e38, np.inf, np.nan])
LENGTHS = (7, 0, 1, 5)  # always the same, so that they are compiled once
leaves = st.tuples(*(st.lists(numbers, min_size=n, max_size=n) for n in LENGTHS))


def kept_by_sort(weights: list[np.ndarray], most: int) -> list[np.ndarray]:
    """Of all together, in order; no zeros; NaN counts as infinite."""
    flat = np.abs(np.concatenate(weights))
    flat = np.where(np.isnan(flat), np.inf, flat)
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[:most]] = True
    return np.split(chosen & (flat > 0), np.cumsum([w.size for w in weights])[:-1])


@jax.jit
def of_all(weights: list[Any], most: jax.Array) -> list[jax.Array]:
    magnitudes = [magnitude_of(w) for w in weights]
    return kept_by(largest_of_all(magnitudes, most), magnitudes)


@jax.jit
def of_each(weights: list[Any], most: jax.Array) -> list[jax.Array]:
    magnitudes = [magnitude_of(w) for w in weights]
    return kept_by(largest_of_each(magnitudes, most), magnitudes)


@settings(deadline=None, max_examples=300)
@given(leaves, st.integers(0, 20), st.data())
def test_the_largest_are_those_of_a_sort(lists: Any, most: int, data: Any):
    weights = [np.array(values, np.float32) for values in lists]
    together = of_all(weights, jnp.uint32(most))
    for got, expected in zip(together, kept_by_sort(weights, most), strict=True):
        np.testing.assert_array_equal(got, expected)
    each = [data.draw(st.integers(0, w.size + 1)) for w in weights]
    masks = of_each(weights, jnp.asarray(each, jnp.uint32))
    for got, w, k in zip(masks, weights, each, strict=True):
        np.testing.assert_array_equal(got, kept_by_sort([w], k)[0])


def net(dtype: Any = jnp.float32) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(draw.normal(size=(20, 30)), dtype), "bias": jnp.ones(30)},
        "b": {"kernel": jnp.asarray(3 * draw.normal(size=(30, 10)), dtype)},
    }


def nonzeros(params: Any) -> list[int]:
    return [int(jnp.sum(params[name]["kernel"] != 0)) for name in "ab"]


def pruned(planner: Any, params: Any) -> tuple[Any, Any]:
    optimizer = jpq_jax.project_params(planner)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_share_of_all_is_where_the_weights_are_large(dtype: Any):
    params = net(dtype)
    kept, state = pruned(jpq_jax.pruning(0.1), params)
    counts = nonzeros(kept)
    assert sum(counts) == 90
    assert counts[1] > counts[0]
    size = np.abs(np.concatenate([np.ravel(params[n]["kernel"]) for n in "ab"])).astype(float)
    left = np.concatenate([np.ravel(kept[n]["kernel"]) for n in "ab"]).astype(float)
    assert np.abs(left[left != 0]).min() >= np.sort(size)[-91]
    assert float(optax.tree.get(state, "pruned_density")) == pytest.approx(0.1)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, jpq_jax.finalize(kept, state), kept))


def test_each_leaf_has_its_share():
    kept, _ = pruned(jpq_jax.pruning({"a/kernel": 0.01, "b/kernel": 0.333}), net())
    assert nonzeros(kept) == [6, 100]  # rounded up


@pytest.mark.parametrize(("keep", "expected"), [(0.0, 0), (1.0, 900)])
def test_nothing_and_all(keep: float, expected: int):
    assert sum(nonzeros(pruned(jpq_jax.pruning(keep), net())[0])) == expected


def test_a_schedule_loosens_it_and_the_end_does_not():
    planner = jpq_jax.pruning(0.1, keep_schedule=lambda count: jnp.where(count < 3, 4.0, 1.0))
    kept, state = pruned(planner, net())
    assert sum(nonzeros(kept)) == 360
    assert sum(nonzeros(jpq_jax.finalize(kept, state))) == 90


def test_curvature_weighs_the_weights():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.full((2, 2), 2.0)}}
    optimizer = jpq_jax.latent(
        optax.adam(0.0),
        jpq_jax.pruning(0.5),
        curvature=lambda state: optax.tree.get(state, "nu"),
    )
    gradients = {"a": {"kernel": jnp.full((2, 2), 9.0)}, "b": {"kernel": jnp.ones((2, 2))}}
    with jax.numpy_dtype_promotion("standard"):  # which optax's own arithmetic there needs
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert nonzeros(optax.apply_updates(params, updates)) == [4, 0]


@pytest.mark.parametrize("keep", [-0.1, 1.1, float("nan"), {"a/kernel": 2.0}])
def test_shares_out_of_range(keep: Any):
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        jpq_jax.pruning(keep)


def test_more_weights_than_32_bits_count():
    shape = jax.ShapeDtypeStruct((2**17, 2**15), jnp.float32)
    with pytest.raises(ValueError, match="got 4294967296 weights"):
        jax.eval_shape(jpq_jax.project_params(jpq_jax.pruning(0.1)).init, {"kernel": shape})


def test_a_share_is_what_it_is_written_as():
    params = {"kernel": jnp.arange(1.0, 101).reshape(10, 10)}
    kept, _ = pruned(jpq_jax.pruning(0.07), params)
    assert int(jnp.sum(kept["kernel"] != 0)) == 7


def test_shares_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'a/kernel'.*expected one for each of .*'b/kernel'"):
        pruned(jpq_jax.pruning({"a/kernel": 0.5}), net())


def test_a_pruned_float_leaf_is_short_in_a_file():
    kept, state = pruned(jpq_jax.pruning(0.02), net())
    codes = jpq_jax.finalize(kept, state)
    data = jpq_jax.artifact.encode(codes)
    assert len(data) < 4 * 900 / 8
    back = jpq_jax.artifact.decode(data).codes
    assert jax.tree.all(jax.tree.map(jnp.array_equal, back, codes))


def test_eight_devices_prune_as_one_and_gather_nothing():
    draw = np.random.default_rng(1)
    params = {"kernel": jnp.asarray(draw.integers(-9, 10, size=(64, 32)), jnp.float32)}
    alone, _ = pruned(jpq_jax.pruning(0.1), params)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    optimizer = jpq_jax.project_params(jpq_jax.pruning(0.1))
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, P("x"))), params)
        zeros = jax.tree.map(jnp.zeros_like, spread)
        step = jax.jit(optimizer.update).lower(zeros, optimizer.init(spread), spread).compile()
        updates, _ = step(zeros, optimizer.init(spread), spread)
        np.testing.assert_array_equal(
            optax.apply_updates(spread, updates)["kernel"], alone["kernel"]
        )
    for gather in ("all-gather", "all-to-all", "collective-permute"):
        assert gather not in step.as_text()
