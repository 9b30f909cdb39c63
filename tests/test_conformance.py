"""Every transformation of the table in tests/transformations.py keeps optax's contract."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import THOROUGH, gathered
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transformations import BUDGET, KEEP, NBYTES, RATE, ROWS, SGD, Row

import jpq_jax

ON_NEWEST = ("latent", "admm-to")


def rows(**having: Any) -> pytest.MarkDecorator:
    """All rows, or those with these attributes; True stands for any value."""
    chosen = {
        name: row
        for name, row in ROWS.items()
        if all(
            bool(getattr(row, key)) if value is True else getattr(row, key) == value
            for key, value in having.items()
        )
    }
    marks = {name: [pytest.mark.newest] for name in ON_NEWEST}
    return pytest.mark.parametrize(
        "row",
        [pytest.param(row, id=name, marks=marks.get(name, [])) for name, row in chosen.items()],
    )


distinct = {} if THOROUGH else {"alike": False}
every_row = rows(**distinct)
every_budget = rows(budgeted=True, **distinct)
every_transformation = rows(of_planner=False, **distinct)


def chained(row: Row, **options: Any) -> optax.GradientTransformationExtraArgs:
    compression = row.make(**options)
    if row.place == "whole":
        return compression
    return optax.chain(SGD, compression) if row.place == "last" else optax.chain(compression, SGD)


def make_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Of 251 distinct weights, so that they can be taken for clusters, some of them 0."""
    draw = np.random.default_rng(0)

    def weights(*shape: int) -> jax.Array:
        return jnp.asarray(draw.integers(-125, 126, size=shape) / 64, dtype)

    return {
        "conv": {"kernel": weights(4, 4, 2, 8), "bias": weights(8)},
        "dense": {"kernel": weights(64, 16), "bias": weights(16)},
    }


def gradients(params: Any, step: int = 0) -> Any:
    return jax.tree.map(lambda p: (p * (0.1 * (step + 1))).astype(p.dtype), params)


def run(optimizer: Any, params: Any, steps: int = 4) -> tuple[Any, Any]:
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = update(gradients(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def _expected(name: str) -> tuple[Any, Any]:
    return run(chained(ROWS[name]), make_params())


def expected_of(row: Row) -> tuple[Any, Any]:
    """What the row makes of `make_params` in a few steps, and the state then."""
    return _expected(row.name)


def assert_within_budget(row: Row, codes: Any) -> None:
    """Not above it; and in bits not far below, though of a few hundred not all can be spent."""
    match row.counted:
        case "bytes":
            assert len(jpq_jax.artifact.encode(codes)) <= NBYTES
        case "weights":
            kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(codes) if leaf.ndim > 1]
            size = sum(leaf.size for leaf in kernels)
            kept = sum(np.count_nonzero(leaf) for leaf in kernels)
            assert kept <= math.ceil(KEEP * size)  # between plans, weights that shrink are pruned
        case _:
            assert 20 <= jpq_jax.paper_ratio(codes) <= 25


def assert_same(got: Any, expected: Any) -> None:
    """Leaf by leaf, whatever the containers; what is pruned in one is pruned in the other."""
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a) == 0, np.asarray(b) == 0)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def without(fields: tuple[str, ...], tree: Any) -> Any:
    return optax.tree.set(tree, **dict.fromkeys(fields)) if isinstance(tree, tuple) else tree


def leaves_of(codes: Any) -> list[Any]:
    """For `finalize(file=)`: a file that is as large whatever the names of the leaves."""
    return [leaf for _, leaf in jpq_jax.leaves_with_paths(codes)]


@every_row
def test_needs_params(row: Row) -> None:
    params = make_params()
    optimizer = row.make()
    with pytest.raises(ValueError, match="params"):
        optimizer.update(gradients(params), optimizer.init(params))


@every_transformation
def test_lets_unknown_extra_arguments_pass(row: Row) -> None:
    params = make_params()
    optimizer = chained(row)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    plain, _ = update(gradients(params), state, params)
    extra, _ = update(gradients(params), state, params, loss=1.0)
    chex.assert_trees_all_equal(plain, extra)


@every_row
def test_jit_equals_eager(row: Row) -> None:
    params = make_params()
    optimizer = chained(row)
    state = optimizer.init(params)
    for step in range(3):
        eager = optimizer.update(gradients(params, step), state, params)
        jitted = jax.jit(optimizer.update)(gradients(params, step), state, params)
        for found, expected in zip(jitted, eager, strict=True):
            assert_same(without(row.searching, found), without(row.searching, expected))
        params, state = optax.apply_updates(params, eager[0]), eager[1]


@every_row
def test_traces_once(row: Row) -> None:
    params = make_params()
    optimizer = chained(row)
    chex.clear_trace_counter()  # which goes by name
    traced = chex.assert_max_traces(optimizer.update, n=1)
    step = jax.jit(traced)
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = step(gradients(params), state, params)
        params = optax.apply_updates(params, updates)


@every_row
def test_donated_state_and_params(row: Row) -> None:
    optimizer = chained(row)

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    keeping, donating = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
    params = make_params()
    state = optimizer.init(params)
    kept, kept_state = make_params(), optimizer.init(make_params())
    for _ in range(3):
        given, (params, state) = params, donating(params, state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        kept, kept_state = keeping(kept, kept_state)
    chex.assert_trees_all_equal(params, kept)


@every_transformation
def test_multi_steps(row: Row) -> None:
    params = make_params()
    optimizer = optax.MultiSteps(chained(row), every_k_schedule=2)
    with jax.numpy_dtype_promotion("standard"):  # which optax's own arithmetic there needs
        reached, state = run(optimizer, params, steps=4)
    assert state.gradient_step == 2
    if row.budgeted:
        assert_within_budget(row, jpq_jax.finalize(reached, state))


@every_transformation
def test_inject_hyperparams(row: Row) -> None:
    params = make_params()
    options = row.options | {"where": lambda path, _: path.endswith("kernel")}
    statics = [name for name in row.statics if name in options]
    factory = optax.inject_hyperparams(row.factory, static_args=statics)
    reached, state = run(factory(**options), params)
    assert_same(reached, run(row.make(where=options["where"]), params)[0])
    if row.number:
        assert float(state.hyperparams[row.number]) == row.options[row.number]
    if "every" in options:
        with pytest.raises(ValueError, match="every=0"):
            factory(**options | {"every": 0}).init(params)


@every_budget
def test_inject_budget_schedule(row: Row) -> None:
    params = make_params()
    ramp = optax.linear_schedule(4.0, 1.0, 3)
    statics = [name for name in row.statics if name in row.options]
    factory = optax.inject_hyperparams(row.factory, static_args=statics)
    injected = factory(**row.options, budget_schedule=ramp)
    assert_same(run(injected, params)[0], run(row.make(budget_schedule=ramp), params)[0])


@rows(number=True, of_planner=False, **distinct)
def test_schedules(row: Row) -> None:
    params = make_params()
    assert row.number
    value = row.options[row.number]
    constant = row.make(**{row.number: optax.constant_schedule(value)})
    assert_same(run(constant, params)[0], run(row.make(), params)[0])
    rising = row.make(**{row.number: optax.linear_schedule(0.0, 10 * value, 4)})
    gap = jax.tree.map(lambda a, b: a - b, run(rising, params)[0], run(constant, params)[0])
    assert optax.tree.norm(gap) > 1e-3


@every_budget
def test_partition(row: Row) -> None:
    params = make_params()
    labels = {"conv": "compressed", "dense": "free"}
    optimizer = optax.partition({"compressed": chained(row), "free": optax.sgd(RATE)}, labels)
    reached, state = run(optimizer, params)
    alone, _ = run(chained(row), {"conv": params["conv"]})
    assert_same(reached["conv"], alone["conv"])
    codes = jpq_jax.finalize(reached, state, file=lambda codes: codes["conv"])
    assert_within_budget(row, codes["conv"])
    chex.assert_trees_all_equal(codes["dense"], reached["dense"])


@every_budget
def test_two_partitions_with_budgets_of_their_own(row: Row) -> None:
    params = make_params()
    groups = {"conv": chained(row), "dense": chained(row)}
    optimizer = optax.partition(groups, {"conv": "conv", "dense": "dense"})
    codes = jpq_jax.finalize(*run(optimizer, params))
    for part in codes.values():
        assert_within_budget(row, part)


@every_transformation
@pytest.mark.parametrize("how", ["tree", "callable"])
def test_masked(row: Row, how: str) -> None:
    params = make_params()
    mask: Any = {"conv": True, "dense": False}
    masked = optax.masked(row.make(), mask if how == "tree" else lambda _: mask)
    updates, _ = jax.jit(masked.update)(gradients(params), masked.init(params), params)
    chex.assert_trees_all_equal(updates["dense"], gradients(params)["dense"])
    reached, state = run(masked, params)
    if row.budgeted:
        codes = jpq_jax.finalize(reached, state, file=lambda codes: codes["conv"])
        assert_within_budget(row, codes["conv"])
        chex.assert_trees_all_equal(codes["dense"], reached["dense"])


@every_transformation
def test_where_is_a_mask_or_a_predicate(row: Row) -> None:
    params = make_params()
    by_mask = chained(row, where={"conv": {"kernel": True, "bias": False}, "dense": False})
    by_path = chained(row, where=lambda path, leaf: path == "conv/kernel" and leaf.ndim == 4)
    chex.assert_trees_all_equal(run(by_mask, params)[0], run(by_path, params)[0])


@rows(of_params=True)
@pytest.mark.parametrize("where", [None, {"conv": True, "dense": False}])
def test_map_params(row: Row, where: Any) -> None:
    params = make_params()
    optimizer = chained(row, where=where)
    state = optimizer.init(params)
    mapped = optax.tree.map_params(optimizer, jnp.logical_not, state)
    before, after = (optax.tree.get(s, row.of_params)["conv"]["kernel"] for s in (state, mapped))
    np.testing.assert_array_equal(after, jnp.logical_not(before))
    assert after.dtype == bool
    for name in ("leaf_bits", "joint_leaf_bits"):
        np.testing.assert_array_equal(optax.tree.get(mapped, name), optax.tree.get(state, name))


@every_row
def test_state_is_stable_under_cond(row: Row) -> None:
    params = make_params()
    optimizer = chained(row)

    @jax.jit
    def maybe(flag: jax.Array, state: Any) -> tuple[Any, Any]:
        def go() -> tuple[Any, Any]:
            return optimizer.update(gradients(params), state, params)

        return jax.lax.cond(flag, go, lambda: (jax.tree.map(jnp.zeros_like, params), state))

    state = optimizer.init(params)
    _, after = maybe(jnp.asarray(True), state)
    _, same = maybe(jnp.asarray(False), state)
    chex.assert_trees_all_equal(state, same)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@every_row
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_dtypes_are_kept(row: Row, dtype: Any) -> None:
    params = make_params(dtype)
    optimizer = chained(row)
    before = optimizer.init(params)
    updates, _ = jax.eval_shape(optimizer.update, gradients(params), before, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    reached, state = run(optimizer, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(reached, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
    if row.budgeted:
        codes = jpq_jax.finalize(reached, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(jpq_jax.dequantize(codes), params)


@every_row
def test_abstract_init(row: Row) -> None:
    params = make_params()
    optimizer = row.make()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    concrete = optimizer.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(optimizer.init(shapes), concrete)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(optimizer.init, shapes), concrete)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 8, (4, 4), rngs=rngs)
        self.dense = nnx.Linear(64, 16, rngs=rngs)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(8, (4, 4), padding="VALID", name="conv")(x)
        return linen.Dense(16, name="dense")(x.reshape(1, -1)[:, :64])


class Layer(eqx.Module):
    bias: jax.Array
    kernel: jax.Array


class EquinoxNet(eqx.Module):
    conv: Layer
    dense: Layer


def as_nnx(params: Any) -> Any:
    state = nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return state


def as_linen(params: Any) -> Any:
    variables = LinenNet().init(jax.random.key(0), jnp.zeros((1, 12, 12, 2)))
    return {"params": jax.tree.map(lambda _, p: p, variables["params"], params)}


def as_equinox(params: Any) -> Any:
    return EquinoxNet(Layer(**params["conv"]), Layer(**params["dense"]))


TREES = {"nnx": as_nnx, "linen": as_linen, "equinox": as_equinox}


@every_transformation
@pytest.mark.parametrize("convert", TREES.values(), ids=TREES)
def test_any_pytree(row: Row, convert: Callable[[Any], Any]) -> None:
    params = make_params()
    tree = convert(params)
    reached, state = run(chained(row), tree)
    expected, expected_state = expected_of(row)
    assert jax.tree.structure(reached) == jax.tree.structure(tree)
    assert_same(reached, expected)
    if not row.budgeted:
        return
    codes = jpq_jax.finalize(reached, state, file=leaves_of)
    expected_codes = jpq_jax.finalize(expected, expected_state, file=leaves_of)
    assert_same(jpq_jax.dequantize(codes), jpq_jax.dequantize(expected_codes))
    assert [path.split("/")[-2:] for path, _ in jpq_jax.leaves_with_paths(codes)] == [
        path.split("/") for path, _ in jpq_jax.leaves_with_paths(expected_codes)
    ]


@every_row
def test_through_the_optimizer_of_nnx(row: Row) -> None:
    net = NnxNet(nnx.Rngs(0))
    nnx.update(net, as_nnx(make_params()))
    optimizer = nnx.Optimizer(net, chained(row), wrt=nnx.Param)
    for step in range(4):
        optimizer.update(net, gradients(nnx.state(net, nnx.Param), step))
    reached = nnx.state(net, nnx.Param)
    expected, state = expected_of(row)
    assert_same(reached, expected)
    if not row.budgeted:
        return
    codes = jpq_jax.finalize(reached, optimizer.opt_state)
    assert_same(jpq_jax.dequantize(codes), jpq_jax.dequantize(jpq_jax.finalize(expected, state)))


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.place != "whole"])
def test_updates_narrower_than_params(row: Row) -> None:
    params = make_params()
    optimizer = row.make()
    narrow = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients(params))
    updates, _ = optimizer.update(narrow, optimizer.init(params), params)
    reached = optax.apply_updates(params, jax.tree.map(lambda u: u.astype(jnp.float32), updates))
    if "learning_rate" in row.options:  # 3 bits each at the start, of 32 / 20 per weight
        kept = sum(int(jnp.sum(layer["kernel"] != 0)) for layer in reached.values())
        assert kept == 32 * 1280 // 20 // 3


@every_budget
def test_under_x64(row: Row) -> None:
    with jax.enable_x64(True):
        params = make_params()
        assert_within_budget(row, jpq_jax.validate(jpq_jax.finalize(*run(chained(row), params))))


@pytest.mark.parametrize("project", [jpq_jax.project, jpq_jax.project_alternating])
def test_projections_under_x64(project: Callable[..., Any]) -> None:
    with jax.enable_x64(True):
        codes = jpq_jax.validate(project(make_params(), BUDGET))
        assert jpq_jax.paper_ratio(codes) >= 20


SPECS = {
    "conv": {"kernel": P(None, None, None, "x"), "bias": P("x")},
    "dense": {"kernel": P("x", "y"), "bias": P("y")},
}


@every_row
def test_eight_devices_equal_one(row: Row) -> None:
    assert_eight_devices_equal_one(row, AxisType.Explicit)


@every_transformation
def test_eight_devices_that_the_compiler_places_equal_one(row: Row) -> None:
    assert_eight_devices_equal_one(row, AxisType.Auto)


def assert_eight_devices_equal_one(row: Row, axis_type: AxisType) -> None:
    params = make_params()
    expected, expected_state = expected_of(row)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, SPECS)
        reached, state = run(chained(row), spread)
        if row.budgeted:
            codes = jpq_jax.finalize(reached, state)
            weights = jpq_jax.dequantize(codes)
    assert_same(reached, expected)
    if row.budgeted:
        expected_codes = jpq_jax.finalize(expected, expected_state)
        assert_same(codes, expected_codes)
        assert_same(weights, jpq_jax.dequantize(expected_codes))
    for leaf in jax.tree.leaves(reached):
        assert len(leaf.sharding.device_set) == 8
    assert not reached["dense"]["kernel"].sharding.is_fully_replicated


@every_row
def test_sharded_leaves_are_not_gathered(row: Row) -> None:
    optimizer = row.make()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("x", None))
        params = {"kernel": jax.device_put(jnp.ones((64, 512)), sharding)}
        lowered = jax.jit(optimizer.update).lower(params, optimizer.init(params), params)
        coded, state = jax.jit(jpq_jax.finalize), optimizer.init(params)
        of_codes = coded.lower(params, state).compile().as_text() if row.budgeted else ""
    assert gathered(of_codes) <= 64 * 512 // 8  # no more than one device has
    text = lowered.compile().as_text()
    assert ("all-reduce" in text) == (row.factory is not jpq_jax.mask_updates)
    if row.counted == "bytes":
        assert gathered(text) <= 64  # numbers of each row
        return
    for gather in ("all-gather", "all-to-all", "collective-permute"):
        assert gather not in text
