"""`finalize` on the states that people have: wrapped, stacked, restored, split; and params that something moved."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from optax import contrib
from transformations import ROWS, SGD, Row

import jpq_jax

CODED = [row for row in ROWS.values() if row.name not in ("mask-updates", "latent-joint")]
every_coded = pytest.mark.parametrize("row", CODED, ids=lambda row: row.name)


def chained(row: Row) -> optax.GradientTransformationExtraArgs:
    whole, last = row.place == "whole", row.place == "last"
    made = row.make()
    return made if whole else optax.chain(SGD, made) if last else optax.chain(made, SGD)


def make_params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "dense": {
            "kernel": jnp.asarray(rng.integers(-50, 51, size=(64, 16)) / 32, jnp.float32),
            "bias": jnp.asarray(rng.integers(-9, 10, size=16) / 8, jnp.float32),
        }
    }


def gradients(params: Any) -> Any:
    return jax.tree.map(lambda p: 0.1 * p, params)


def run(optimizer: Any, params: Any, steps: int = 3) -> tuple[Any, Any]:
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    for _ in range(steps):
        updates, state = update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def trained(name: str) -> tuple[Any, Any]:
    return run(chained(ROWS[name]), make_params())


def assert_same(got: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_near(got: Any, expected: Any) -> None:
    """Codes of weights that another program trained."""
    got, expected = jpq_jax.dequantize(got), jpq_jax.dequantize(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def as_restored(state: Any) -> Any:
    """As orbax gives a state back without being shown its types."""
    match state:
        case optax.MaskedNode() | None | optax.EmptyState():
            return None
        case tuple() if hasattr(state, "_fields"):
            return {k: as_restored(v) for k, v in state._asdict().items()}
        case tuple():
            return [as_restored(v) for v in state]
        case dict():
            return {k: as_restored(v) for k, v in state.items()}
    return None if jax.tree.structure(state).num_leaves == 0 else state


# --- of several members ---


@pytest.mark.parametrize(
    "row", [row for row in CODED if row.name != "cluster-updates"], ids=lambda row: row.name
)
def test_a_state_of_several_members_says_how_to_pass_one(row: Row) -> None:
    one = trained(row.name)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    with pytest.raises(ValueError, match=r"several members in one.*x\[i\], \(params, state\)"):
        jpq_jax.finalize(*stacked)
    second = jax.tree.map(lambda x: x[1], stacked)
    assert_same(jpq_jax.finalize(*second), jpq_jax.finalize(*one))


def test_clusters_of_several_members() -> None:
    """Of which the state has no number that would show it; equal weights of unlike members do."""
    optimizer = jpq_jax.cluster_updates()
    members = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), make_params())
    state = jax.vmap(optimizer.init)(members)
    with pytest.raises(ValueError, match=r"others of their cluster.*x\[i\], \(params, state\)"):
        jpq_jax.finalize(members, state)
    second = jax.tree.map(lambda x: x[1], (members, state))
    codes = jpq_jax.dequantize(jpq_jax.finalize(*second))
    np.testing.assert_array_equal(codes["dense"]["kernel"], second[0]["dense"]["kernel"])


def test_members_trained_by_vmap() -> None:
    """Of two axes, too; each is what it would be by itself."""
    optimizer = chained(ROWS["project-params"])
    grid = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 2, *x[0].shape), *map(make_params, range(4)))  # fmt: skip
    state = jax.vmap(jax.vmap(optimizer.init))(grid)
    update = jax.jit(jax.vmap(jax.vmap(optimizer.update)))
    for _ in range(3):
        updates, state = update(gradients(grid), state, grid)
        grid = optax.apply_updates(grid, updates)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        jpq_jax.finalize(grid, state)
    member = jax.tree.map(lambda x: x[1, 0], (grid, state))
    expected = run(optimizer, make_params(2))
    assert_near(jpq_jax.finalize(*member), jpq_jax.finalize(*expected))
    coded = jax.vmap(jax.vmap(jpq_jax.finalize))(grid, state)
    assert_near(jax.tree.map(lambda x: x[1, 0], coded), jpq_jax.finalize(*expected))


# --- restored ---


@every_coded
def test_a_state_whose_types_are_lost_says_what_to_pass(row: Row) -> None:
    params, state = trained(row.name)
    with pytest.raises(ValueError, match=r"types are lost.*eval_shape\(optimizer\.init, params\)"):
        jpq_jax.finalize(params, {"params": params, "opt_state": as_restored(state)})


def test_from_orbax(tmp_path: Path) -> None:
    """Raw, and into the optimizer's types, with what is static in them."""
    optimizer = ROWS["latent-joint"].make()
    params = make_params()
    state = optimizer.init(params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        raw = checkpointer.restore(tmp_path / "state")
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(optimizer.init, params))
    assert jax.tree.structure(raw) == jax.tree.structure(as_restored(state))
    with pytest.raises(ValueError, match="types are lost"):
        jpq_jax.finalize(params, raw)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same(restored, state)


def test_on_the_host() -> None:
    params, state = trained("latent")
    assert_same(jpq_jax.finalize(*jax.device_get((params, state))), jpq_jax.finalize(params, state))


def test_on_another_device_than_the_params() -> None:
    params, state = trained("latent")
    there = jax.device_put(params, jax.devices()[3])
    state_here = jax.device_put(state, jax.devices()[0])
    codes = jpq_jax.finalize(there, state_here)
    assert_same(codes["dense"]["kernel"], jpq_jax.finalize(params, state)["dense"]["kernel"])


# --- wrapped ---


def test_in_a_train_state() -> None:
    optimizer = chained(ROWS["latent"])
    params = make_params()
    whole = TrainState.create(apply_fn=lambda: None, params=params, tx=optimizer)
    for _ in range(3):
        whole = whole.apply_gradients(grads=gradients(whole.params))
    assert_near(jpq_jax.finalize(whole.params, whole), jpq_jax.finalize(*trained("latent")))


class Net(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(64, 16, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("make", [nnx.Optimizer, nnx.ModelAndOptimizer])
@pytest.mark.parametrize("name", ["latent", "project-params", "cluster-updates"])
def test_in_an_optimizer_of_nnx(make: Any, name: str) -> None:
    """The optimizer, its state, and what is merged again; of what `nnx.state` and `nnx.split` give, what to pass instead."""
    net = Net()
    nnx.update(net, nnx.State(make_params()))
    optimizer = make(net, chained(ROWS[name]), wrt=nnx.Param)
    for _ in range(3):
        of_net = gradients(nnx.state(net, nnx.Param))
        optimizer.update(*((net, of_net) if make is nnx.Optimizer else (of_net,)))
    params = nnx.state(net, nnx.Param)
    expected = jpq_jax.finalize(*trained(name))
    graphdef, split = nnx.split(optimizer)
    merged = nnx.merge(graphdef, split)
    for state in (optimizer, optimizer.opt_state, merged, merged.opt_state):
        assert_near(jpq_jax.finalize(params, state), expected)
    of_optimizer = nnx.state(optimizer)
    for lost in (split, of_optimizer, nnx.to_pure_dict(of_optimizer)):
        with pytest.raises(ValueError, match=r"types are lost.*optimizer\.opt_state"):
            jpq_jax.finalize(params, lost)


# --- params that are not what the state projects to ---

LATENT = jpq_jax.latent(SGD, jpq_jax.pruning(0.3), every=1)


def after(optimizer: Any, steps: int = 6) -> tuple[Any, Any]:
    params = make_params()
    optimizer = optax.with_extra_args_support(optimizer)
    state = optimizer.init(params)
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, value=jnp.float32(1)))
    with jax.numpy_dtype_promotion("standard"):  # which optax's own arithmetic needs
        for _ in range(steps):
            updates, state = update(gradients(params), state, params)
            params = optax.apply_updates(params, updates)
    return params, state


MOVERS: dict[str, Callable[[Any], Any]] = {
    "schedule_free": lambda inner: contrib.schedule_free(inner, learning_rate=0.1),
    "mechanize": contrib.mechanize,
    "reduce_on_plateau": lambda inner: optax.chain(
        inner, contrib.reduce_on_plateau(patience=1, factor=0.5)
    ),
    "keep_params_nonnegative": lambda inner: optax.chain(inner, optax.keep_params_nonnegative()),
    "weight decay": lambda inner: optax.chain(inner, optax.add_decayed_weights(-1e-3)),
    "noise": lambda inner: optax.chain(inner, optax.add_noise(0.01, 0.5, 0)),
    "scale": lambda inner: optax.chain(inner, optax.scale(0.5)),
    "ema of updates": lambda inner: optax.chain(inner, optax.ema(0.9)),
    "conditionally_transform": lambda inner: optax.transforms.conditionally_transform(
        inner,
        lambda step, **_: step < 5,  # pyright: ignore[reportArgumentType]
    ),
}


@pytest.mark.parametrize("wrapper", MOVERS.values(), ids=MOVERS)
def test_what_moves_the_params_belongs_inside(wrapper: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"'dense/kernel'.*goes inside: .latent\(schedule_free"):
        jpq_jax.finalize(*after(wrapper(LATENT)))
    params, state = after(jpq_jax.latent(wrapper(SGD), jpq_jax.pruning(0.3), every=1))
    kernel = jpq_jax.finalize(params, state)["dense"]["kernel"]
    np.testing.assert_allclose(kernel, params["dense"]["kernel"], rtol=1e-6)


def test_two_copies_of_the_params() -> None:
    """Lookahead's slow ones are an average; of those that a projection stands behind, codes are their own."""
    start = optax.LookaheadParams.init_synced(make_params())

    def ahead(inner: Any) -> tuple[Any, Any]:
        optimizer, params = optax.lookahead(inner, 3, 0.5), start
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        with jax.numpy_dtype_promotion("standard"):  # which optax's own arithmetic needs
            for _ in range(6):
                updates, state = update(gradients(params.fast), state, params)
                params = optax.apply_updates(params, updates)
        return params, state

    params, state = ahead(LATENT)
    for copy in (params.slow, params.fast):  # equal after every third update
        with pytest.raises(ValueError, match="latents project to"):
            jpq_jax.finalize(copy, state)
    params, state = ahead(optax.chain(SGD, jpq_jax.project_params(jpq_jax.pruning(0.3))))
    kernel = np.asarray(jpq_jax.finalize(params.slow, state)["dense"]["kernel"])
    assert np.count_nonzero(kernel) == 308
    np.testing.assert_array_equal(kernel[kernel != 0], params.slow["dense"]["kernel"][kernel != 0])


STILL: dict[str, Callable[[Any], Any]] = {
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "MultiSteps, in the middle": lambda inner: optax.MultiSteps(inner, 4),
    "zero_nans": lambda inner: optax.chain(optax.zero_nans(), inner),
    "named_chain": lambda inner: optax.named_chain(("clip", optax.clip(1.0)), ("compress", inner)),
    "masked": lambda inner: optax.masked(inner, {"dense": True}),
    "conditionally_mask": lambda inner: optax.transforms.conditionally_mask(
        inner,
        lambda step, **_: step < 5,  # pyright: ignore[reportArgumentType]
    ),
}


@pytest.mark.parametrize("wrapper", STILL.values(), ids=STILL)
def test_what_leaves_the_params_alone_raises_no_alarm(wrapper: Callable[[Any], Any]) -> None:
    params, state = after(wrapper(LATENT))
    kernel = jpq_jax.finalize(params, state)["dense"]["kernel"]
    np.testing.assert_allclose(kernel, params["dense"]["kernel"], rtol=1e-6)


def test_an_update_that_was_skipped_raises_no_alarm() -> None:
    optimizer = optax.apply_if_finite(LATENT, 3)
    params, state = run(optimizer, make_params())
    spoiled = jax.tree.map(lambda p: jnp.full(p.shape, jnp.nan), params)
    updates, state = optimizer.update(spoiled, state, params)
    reached = optax.apply_updates(params, updates)
    assert_same(jpq_jax.finalize(reached, state), jpq_jax.finalize(params, state))


def moved(params: Any, how: Callable[[jax.Array], Any]) -> Any:
    return {"dense": params["dense"] | {"kernel": how(params["dense"]["kernel"])}}


OTHER_PARAMS: dict[str, Callable[[jax.Array], Any]] = {
    "an average": lambda w: 0.9 * w + 0.1 * make_params()["dense"]["kernel"],
    "a revived weight": lambda w: jnp.where(w == 0, 1e-9, w),
    "one of many": lambda w: w.at[3, 4].add(0.25),
    "a weight lost": lambda w: jnp.where(w == jnp.max(w), 0, w),
    "all a little": lambda w: w * 1.001,
    "the other sign": lambda w: -w,
}


@pytest.mark.parametrize("how", OTHER_PARAMS.values(), ids=OTHER_PARAMS)
@pytest.mark.parametrize("name", ["latent", "latent-in-bytes"])
def test_other_params_than_those_of_the_state(name: str, how: Callable[[jax.Array], Any]) -> None:
    params, state = trained(name)
    with pytest.raises(ValueError, match=r"'dense/kernel': \d+ of 1024 params are not"):
        jpq_jax.finalize(moved(params, how), state)


def test_params_of_the_step_before() -> None:
    params, state = trained("latent")
    _, later = LATENT_OF_ROW.update(gradients(params), state, params)
    with pytest.raises(ValueError, match="another step"):
        jpq_jax.finalize(params, later)


LATENT_OF_ROW = chained(ROWS["latent"])


def test_rounded_leaves_are_the_states_too() -> None:
    """Under a budget in bytes biases are trained through it."""
    params, state = trained("latent-in-bytes")
    biased = {"dense": params["dense"] | {"bias": params["dense"]["bias"] + 0.01}}
    with pytest.raises(ValueError, match="'dense/bias'"):
        jpq_jax.finalize(biased, state)
    params, state = trained("latent")  # to which biases do not matter
    jpq_jax.finalize({"dense": params["dense"] | {"bias": params["dense"]["bias"] + 1}}, state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_params_in_a_narrower_dtype_are_still_the_states(dtype: Any) -> None:
    """Trained in it, or cast to it afterwards."""
    narrow = jax.tree.map(lambda p: p.astype(dtype), make_params())
    for params, state in (run(LATENT, narrow, steps=7), trained("latent")):
        cast = jax.tree.map(lambda p: p.astype(dtype), params)
        assert jpq_jax.finalize(cast, state)["dense"]["kernel"].dtype == dtype
        with pytest.raises(ValueError, match="latents project to"):
            jpq_jax.finalize(moved(cast, lambda w: (w + 0.125).astype(dtype)), state)


def test_a_small_weight_after_a_large_one_is_still_the_states() -> None:
    """p + (q - p) is q but for the rounding of p, which may be far larger than q."""
    params = {"dense": {"kernel": jnp.full((8, 8), 16.0), "bias": jnp.zeros(8)}}
    optimizer = jpq_jax.latent(optax.sgd(1.0), jpq_jax.pruning(1.0))
    steps = jax.tree.map(lambda p: p - jnp.float32(np.pi / 2), params)
    updates, state = optimizer.update(steps, optimizer.init(params), params)
    reached = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        jpq_jax.finalize(reached, state)["dense"]["kernel"], np.pi / 2, rtol=1e-6
    )


def test_clusters_that_something_moved_apart() -> None:
    params, state = trained("cluster-updates")
    apart = moved(params, lambda w: w.at[0, 0].multiply(1.5))
    with pytest.raises(ValueError, match=r"'dense/kernel': \d+ of 1024 .*others of their cluster"):
        jpq_jax.finalize(apart, state)
    zero = np.argwhere(np.asarray(params["dense"]["kernel"]) == 0)[0]
    revived = moved(params, lambda w: w.at[tuple(zero)].set(0.5))
    with pytest.raises(ValueError, match="1 of 1024"):
        jpq_jax.finalize(revived, state)


def test_clusters_of_latents_are_not_those_of_the_params() -> None:
    """Of equal weights the projection may keep some."""
    inner = optax.chain(SGD, jpq_jax.cluster_updates())
    params, state = run(jpq_jax.latent(inner, jpq_jax.pruning(0.3), every=1), make_params())
    codes = jpq_jax.finalize(params, state)
    np.testing.assert_allclose(codes["dense"]["kernel"], params["dense"]["kernel"], rtol=1e-6)


def test_weights_that_are_not_finite_are_named_as_such() -> None:
    params, state = trained("latent")
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        jpq_jax.finalize(moved(params, lambda w: w.at[0, 0].set(jnp.nan)), state)


def test_traced_params_raise_no_alarm() -> None:
    params, state = trained("latent")
    codes = jax.jit(jpq_jax.finalize)(moved(params, lambda w: w + 1), state)
    assert_same(codes["dense"]["kernel"], jpq_jax.finalize(params, state)["dense"]["kernel"])
