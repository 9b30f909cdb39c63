"""Training through a projection, with a frozen support, with frozen clusters: what is held stays held."""

from __future__ import annotations

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import AS_FOR_USERS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

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


THROUGH_ZERO = {
    "on the way": (jnp.float32, [1.0, 0.0, -1.0, 3.0], -0.5),
    "in bfloat16": (jnp.bfloat16, [1.0, 0.0, 0.25, -8.0], -0.25),
    "by underflow": (jnp.float16, [6e-8, 0.0, -6e-8, 1.0], -3e-8),  # 6e-8 is the least there is
}


@pytest.mark.parametrize(("dtype", "weights", "step"), THROUGH_ZERO.values(), ids=THROUGH_ZERO)
@pytest.mark.parametrize("name", ["mask_updates", "cluster_updates"])
def test_a_weight_that_passes_through_zero_goes_on(
    name: str, dtype: Any, weights: list[float], step: float
) -> None:
    """By the support that `init` saw."""
    start = jnp.asarray([weights], dtype)
    optimizer = getattr(jpq_jax, name)()
    params: Any = {"kernel": start, "bias": jnp.zeros(4, dtype)}
    steps = jax.tree.map(lambda p: jnp.full(p.shape, step, dtype), params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    met_zero = jnp.zeros(start.shape, bool)
    for _ in range(9):
        updates, state = update(steps, state, params)
        params = optax.apply_updates(params, updates)
        met_zero |= (params["kernel"] == 0) & (start != 0)
    assert bool(jnp.any(met_zero))
    nonzero = np.asarray(start) != 0
    np.testing.assert_array_equal(np.asarray(updates["kernel"]) != 0, nonzero & (dtype(step) != 0))
    np.testing.assert_array_equal(np.asarray(params["kernel"])[~nonzero], 0)
    assert np.all(np.asarray(params["bias"], np.float32) <= 0)


def test_a_mask_takes_a_byte_for_each_weight_and_lies_as_they_do() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, P("x", None))
        spread = {"kernel": jax.device_put(jnp.eye(16), placed), "bias": jnp.ones(4)}
        state = jax.jit(jpq_jax.mask_updates().init)(spread)
    assert state.support["kernel"].dtype == bool
    assert state.support["kernel"].sharding == placed
    assert isinstance(state.support["bias"], optax.MaskedNode)


def test_a_mask_is_saved_with_the_state() -> None:
    """Restored into the shapes of a fresh one, after weights have met zero."""
    optimizer = jpq_jax.mask_updates()
    params = {"kernel": jnp.asarray([[1.0, 0.0]])}
    state = optimizer.init(params)
    zeros = {"kernel": jnp.zeros((1, 2))}
    shapes = jax.eval_shape(optimizer.init, zeros)
    again = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(state))
    updates, _ = optimizer.update({"kernel": jnp.ones((1, 2))}, again, zeros)
    np.testing.assert_array_equal(updates["kernel"], [[1, 0]])


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
    optimizer = jpq_jax.latent(inner, jpq_jax.clustering(1), every=5)
    params, state = train(optimizer, kernel, 200)
    assert not (np.asarray(params["kernel"])[np.asarray(kernel) == 0]).any()
    assert len(np.unique(np.asarray(params["kernel"]))) <= 3
    codes = jpq_jax.validate(jpq_jax.finalize(params, state))
    np.testing.assert_allclose(jpq_jax.dequantize(codes)["kernel"], params["kernel"], rtol=1e-6)
    assert int(codes["kernel"].bits) == 1


def test_held_bits_of_each_leaf() -> None:
    params = {"a": target(), "b": target()}
    optimizer = jpq_jax.latent(optax.sgd(0.1), jpq_jax.clustering([1, 3]))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    codes = jpq_jax.finalize(optax.apply_updates(params, updates), state)
    assert [int(codes[name].bits) for name in "ab"] == [1, 3]
    with pytest.raises(ValueError, match="3 bit-widths, expected one for each of 2"):
        jpq_jax.latent(optax.sgd(0.1), jpq_jax.clustering([1, 2, 3])).init(params)


@pytest.mark.parametrize("bits", [0, 9, [1, 0], [], [2.7], 2.7, np.int64(9), {"a": 0}])
def test_held_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(ValueError, match="expected 1 to 8"):
        jpq_jax.clustering(bits)


@pytest.mark.parametrize("make", [jpq_jax.latent, jpq_jax.project_params])
def test_plans_need_a_positive_interval(make: Any) -> None:
    arguments = (optax.sgd(0.1),) if make is jpq_jax.latent else ()
    with pytest.raises(ValueError, match="every=0"):
        make(*arguments, jpq_jax.clustering(1), every=0)


def test_latents_of_narrow_params_take_small_steps() -> None:
    """In bfloat16 a thousandth of a weight would be lost."""
    params = {"kernel": jnp.ones((4, 8), jnp.bfloat16)}
    optimizer = jpq_jax.latent(optax.sgd(1e-3, momentum=0.5), jpq_jax.pruning(1.0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(500):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        params = optax.apply_updates(params, updates)
    latents = optax.tree.get(state, "latents")["kernel"]
    np.testing.assert_allclose(latents, 1 - 1e-3 * 2 * 499, atol=1e-4)
    np.testing.assert_allclose(np.float32(params["kernel"]), latents, atol=2**-6)
    codes = jpq_jax.finalize(params, state)
    assert codes["kernel"].dtype == jnp.bfloat16


def test_latents_let_small_steps_add_up() -> None:
    """Projected descent undoes steps that carry no weight over a border; latents get there."""
    planner = jpq_jax.joint(jpq_jax.Budget(bits=60))
    start = target()[::-1]
    through, state = train(jpq_jax.latent(optax.sgd(0.04), planner), start, 120)
    projected, _ = train(optax.chain(optax.sgd(0.04), jpq_jax.project_params(planner)), start, 120)

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


def test_a_plan_is_made_by_the_first_update() -> None:
    params = {"kernel": target()}
    planner = jpq_jax.joint(jpq_jax.Budget(bits=60))
    latent = jpq_jax.latent(optax.sgd(0.1), planner)
    for optimizer in (latent, jpq_jax.project_params(planner)):
        with pytest.raises(ValueError, match="before its first update"):
            jpq_jax.finalize(params, optimizer.init(params))


def test_updates_of_large_clusters_are_all_counted() -> None:
    """More of one value than float32 can count one by one, and small updates."""
    shape = (5 * 2**10, 2**12)
    params = {"kernel": jnp.ones(shape)}
    optimizer = jpq_jax.cluster_updates()
    init, update = (
        jax.jit(part, compiler_options=AS_FOR_USERS) for part in (optimizer.init, optimizer.update)
    )
    updates, _ = update({"kernel": jnp.full(shape, 1e-3)}, init(params), params)
    np.testing.assert_allclose(updates["kernel"][:4, :4], 1e-3, rtol=1e-4)


def test_clusters_of_a_sharded_leaf_are_found_without_a_gather() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    values = jnp.asarray(np.random.default_rng(0).integers(-99, 99, size=(64, 128)), jnp.float32)
    expected = jpq_jax.cluster_updates().init({"kernel": values})
    with jax.set_mesh(mesh):
        spread = {"kernel": jax.device_put(values, NamedSharding(mesh, P("x", None)))}
        compiled = jax.jit(jpq_jax.cluster_updates().init).lower(spread).compile()
        found = compiled(spread)
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_array_equal(found.cluster_of["kernel"], expected.cluster_of["kernel"])


def test_a_pruned_float64_weight_is_exactly_zero() -> None:
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(20, 20)))}
        projected = jpq_jax.project_params(jpq_jax.joint(jpq_jax.Budget(ratio=20)))
        updates, _ = projected.update(params, projected.init(params), params)
        kernel = np.asarray(optax.apply_updates(params, updates)["kernel"])
    assert kernel.dtype == np.float64
    assert 0 < np.count_nonzero(kernel) == np.count_nonzero(abs(kernel) > 1e-6) < 400


def test_the_pull_brings_latents_to_their_projection() -> None:
    """By SGD without a loss: geometrically, and from the side that they are on."""
    params, zeros = {"kernel": target()}, {"kernel": jnp.zeros(SHAPE)}
    planner = jpq_jax.joint(jpq_jax.Budget(bits=60))
    optimizer = jpq_jax.latent(optax.sgd(0.5), planner, every=1000, pull=0.2)
    state, gaps = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(10):
        updates, state = update(zeros, state, params)
        params = optax.apply_updates(params, updates)
        gaps.append(np.asarray(state.latents["kernel"] - params["kernel"]))
    for before, after in itertools.pairwise(gaps):
        np.testing.assert_allclose(after, 0.9 * before, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="pull=-1"):
        jpq_jax.latent(optax.sgd(0.5), planner, pull=-1)


def test_clusters_that_meet_are_one_value() -> None:
    params = {"kernel": jnp.asarray([[1.0, 1.0078125], [-1.0, 0.0]], jnp.bfloat16)}
    optimizer = jpq_jax.cluster_updates()
    step = {"kernel": jnp.asarray([[0.0, -0.0078125], [0.0, 0.0]], jnp.bfloat16)}
    updates, state = optimizer.update(step, optimizer.init(params), params)
    reached = optax.apply_updates(params, updates)
    codes = jpq_jax.validate(jpq_jax.finalize(reached, state))
    np.testing.assert_array_equal(jpq_jax.dequantize(codes)["kernel"], reached["kernel"])
    assert int(codes["kernel"].bits) == 1
