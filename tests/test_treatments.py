"""Groups, patterns, grids, scales, curvature and the coded rate: each against an oracle of its own, and the budget always."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import AS_FOR_USERS, THOROUGH, gathered
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jpq_jax
from jpq_jax import (
    Block,
    Budget,
    Channels,
    Codes,
    Element,
    NofM,
    Treatment,
    dequantize,
    project,
    rate_bits,
    validate,
)
from jpq_jax.allocation.lagrangian import ascending
from jpq_jax.allocation.rates import CodedRate
from jpq_jax.allocation.spending import Book
from jpq_jax.granularity import group_mean, group_shape, largest_of, of_group
from jpq_jax.projection.project import _project

PROJECT = sys.modules[_project.__module__]  # which the function `project` hides
SHAPES = {"conv": (3, 3, 4, 8), "dense": (40, 24)}
WEIGHTS = sum(math.prod(shape) for shape in SHAPES.values())
KINDS = ("normal", "tiny", "huge", "zero")
TREATMENTS = {
    "element": Treatment(),
    "2:4": Treatment(granularity=NofM(2, 4)),
    "blocks": Treatment(granularity=Block((2, 4))),
    "channels": Treatment(granularity=Channels()),
    "inputs": Treatment(granularity=Channels(-2)),
    "uniform": Treatment(grid="uniform"),
    "channel scales": Treatment(scale="channel"),
    "uniform channels": Treatment(granularity=Channels(), grid="uniform", scale="channel"),
}


AS_USERS_PROJECT = jax.jit(
    _project.__wrapped__, static_argnums=(3, 4), compiler_options=AS_FOR_USERS
)


@pytest.fixture
def as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that project many times with one program."""
    monkeypatch.setattr(PROJECT, "_project", AS_USERS_PROJECT)


def net(seed: int, kind: str = "normal") -> dict[str, np.ndarray]:
    """Channels of different scales, so that there is something to choose."""
    rng = np.random.default_rng(seed)
    scale = {"normal": 1.0, "tiny": 1e-33, "huge": 1e33, "zero": 0.0}[kind]
    return {
        name: (scale * rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))).astype(
            np.float32
        )
        for name, shape in SHAPES.items()
    }


def plan_of(treatment: Treatment) -> Any:
    return lambda path, leaf: treatment


def error(weights: dict[str, Any], codes: Any, costs: dict[str, Any] | None = None) -> float:
    dense = dequantize(codes)
    unit = max(float(np.abs(w).max()) for w in weights.values()) or 1.0
    cost = costs or dict.fromkeys(weights, 1.0)
    lost = (cost[k] * ((w.astype(np.float64) - dense[k]) / unit) ** 2 for k, w in weights.items())
    whole = (cost[k] * (w.astype(np.float64) / unit) ** 2 for k, w in weights.items())
    return float(sum(x.sum() for x in lost) / (sum(x.sum() for x in whole) or 1.0))


CASES = [(name, "paper") for name in (TREATMENTS if THOROUGH else ("element", "2:4"))] + [
    (name, "coded") for name in (("element", "uniform channels") if THOROUGH else ("element",))
]


@pytest.mark.parametrize(("name", "rate"), CASES)
@pytest.mark.usefixtures("as_for_users")
def test_the_budget_is_never_exceeded_and_is_spent(name: str, rate: Any) -> None:
    treatment = TREATMENTS[name]

    @settings(deadline=None, max_examples=95 if THOROUGH else 8)
    @given(st.integers(0, 2**31), st.sampled_from(KINDS), st.floats(0, 8.0 * WEIGHTS))
    @example(0, "normal", 0.0)
    @example(0, "normal", 2500.0)
    @example(0, "zero", 2500.0)
    @example(0, "tiny", 2500.0)
    @example(0, "huge", 2500.0)
    def check(seed: int, kind: str, bits: float) -> None:
        weights = net(seed, kind)
        codes = validate(project(weights, Budget(bits=bits), rate=rate, plan=plan_of(treatment)))
        assert rate_bits(codes, rate) <= bits
        if name in ("element", "uniform", "channel scales") and rate == "paper" and bits == 2500:
            assert rate_bits(codes, rate) >= (0 if kind == "zero" else 0.995 * bits)

    check()


def support(leaf: Codes) -> np.ndarray:
    return np.asarray(leaf.code) != 0


def test_n_of_m() -> None:
    n, weights = 2, net(1)
    loose = project(weights, Budget(ratio=8), plan=plan_of(Treatment(granularity=NofM(n, 4))))
    for name, w in weights.items():
        groups = np.moveaxis(support(loose[name]), -2, -1).reshape(-1, 4)
        assert groups.sum(axis=1).max() <= n
        order = np.argsort(-np.abs(np.moveaxis(w, -2, -1).reshape(-1, 4)), axis=1, kind="stable")
        ruled_out = np.take_along_axis(groups, order[:, n:], axis=1)
        assert not ruled_out.any()


@pytest.mark.parametrize(
    ("granularity", "bits"),
    list(itertools.product([Block((2, 4)), Channels(), Channels(-2)], [900, 2500, 6000]))
    if THOROUGH
    else [(Block((2, 4)), 6000), (Channels(), 2500), (Channels(-2), 900)],
)
def test_groups_are_kept_or_pruned_as_wholes(granularity: Any, bits: int) -> None:
    weights = net(2)
    codes = project(weights, Budget(bits=bits), plan=plan_of(Treatment(granularity=granularity)))
    kept = 0
    for name in weights:
        mask = support(codes[name]).astype(np.float32)
        share = np.asarray(group_mean(jnp.asarray(mask), group_shape(mask.shape, granularity)))
        assert set(np.unique(share)) <= {0.0, 1.0}
        kept += mask.sum()
    assert kept > 0
    smallest = min(math.prod(group_shape(s, granularity)) for s in SHAPES.values())
    assert rate_bits(codes) > bits - 8 * 4 * smallest - 0.1 * bits


def best_channels(w: np.ndarray, limit: int) -> float:
    """Over all sets of channels, with one bit: the two best values of all ways to cut the kept weights in two."""
    least = float((w**2).sum())
    for size in range(1, w.shape[1] + 1):
        for kept in itertools.combinations(range(w.shape[1]), size):
            x = np.sort(w[:, list(kept)].ravel())
            if len(x) > limit:
                continue
            cuts = (x[:i].var() * i + x[i:].var() * (len(x) - i) for i in range(1, len(x)))
            least = min(least, float((w**2).sum() - (x**2).sum()) + min(cuts))
    return least


@pytest.mark.usefixtures("as_for_users")
def test_channels_near_the_optimum_of_one_bit() -> None:
    gaps = []
    for seed in range(20 if THOROUGH else 10):
        rng = np.random.default_rng(seed)
        w = (rng.normal(size=(6, 8)) * np.exp(0.7 * rng.normal(size=8))).astype(np.float32)
        limit = 18
        codes = project(
            {"w": w}, Budget(bits=limit), plan=plan_of(Treatment(granularity=Channels()))
        )
        found = float(((w - np.asarray(dequantize(codes)["w"])) ** 2).sum())
        gaps.append((found - best_channels(w.astype(np.float64), limit)) / float((w**2).sum()))
    assert np.mean(gaps) < 0.05
    assert max(gaps) < 0.25


@pytest.mark.parametrize(
    "name", ["uniform", "uniform channels"] if THOROUGH else ["uniform channels"]
)
def test_uniform_values_are_multiples_of_a_step(name: str) -> None:
    codes = project(net(3), Budget(bits=4000), plan=plan_of(TREATMENTS[name]))
    for leaf in codes.values():
        values = np.asarray(leaf.codebook, np.float64)
        values = values[values != 0]
        assert len(values)
        gaps = np.append(np.abs(values), np.diff(values))
        step = min(
            (gaps.min() / k for k in range(1, 5)),
            key=lambda step: np.abs(values / step - np.round(values / step)).max(),
        )
        np.testing.assert_allclose(values / step, np.round(values / step), atol=1e-3)


def test_free_values_are_no_worse_than_uniform_ones() -> None:
    for seed in range(3):
        weights = net(seed)
        free, uniform = (
            error(weights, project(weights, Budget(ratio=20), plan=plan_of(TREATMENTS[name])))
            for name in ("element", "uniform")
        )
        assert free <= 1.01 * uniform


def test_scales_of_channels_pay_where_channels_differ() -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=(64, 16)) * np.exp2(np.arange(16) / 2)
    weights = {"w": signs.astype(np.float32)}
    plain = project(weights, Budget(bits=1024))
    scaled = project(weights, Budget(bits=1024), plan=plan_of(Treatment(scale="channel")))
    assert error(weights, scaled) < 1e-6 < 0.02 < error(weights, plain)
    assert scaled["w"].scale.shape == (1, 16)
    np.testing.assert_allclose(np.diff(np.log2(np.abs(scaled["w"].scale[0]))), 0.5, atol=1e-5)


def test_scales_are_saved_and_loaded(tmp_path: Any) -> None:
    codes = project(net(4), Budget(bits=3000), plan=plan_of(TREATMENTS["uniform channels"]))
    first, second = tmp_path / "a.jpq", tmp_path / "b.jpq"
    jpq_jax.artifact.save(first, codes)
    loaded = jpq_jax.artifact.load(first).codes
    jax.tree.map(np.testing.assert_array_equal, codes, loaded)
    jpq_jax.artifact.save(second, loaded)
    assert first.read_bytes() == second.read_bytes()


def test_one_cost_for_all_is_no_cost() -> None:
    weights = net(5)
    costs = {name: np.full(w.shape, 3.0, np.float32) for name, w in weights.items()}
    plain, costly = (project(weights, Budget(ratio=30), curvature=c) for c in (None, costs))
    assert error(weights, costly) == pytest.approx(error(weights, plain), rel=1e-2)


@pytest.mark.parametrize(
    ("granularity", "scale"),
    list(itertools.product([Element(), Channels()], [1e-12, 1e12]))
    if THOROUGH
    else [(Element(), 1e-12), (Channels(), 1e12)],
)
def test_curvature_lowers_the_error_that_it_weighs(granularity: Any, scale: float) -> None:
    weights, rng = net(6), np.random.default_rng(0)
    of_channel = {k: np.exp(2 * rng.normal(size=w.shape[-1])) for k, w in weights.items()}
    costs = {
        k: (scale * of_channel[k] * np.exp(0.5 * rng.normal(size=w.shape))).astype(np.float32)
        for k, w in weights.items()
    }
    plan = plan_of(Treatment(granularity=granularity))
    plain, costly = (
        project(weights, Budget(ratio=30), curvature=c, plan=plan) for c in (None, costs)
    )
    assert error(weights, costly, costs) < 0.9 * error(weights, plain, costs)


def best_weighted(w: np.ndarray, cost: np.ndarray, limit: int) -> float:
    """Of one bit: over all supports, and all ways to cut what is kept in two."""
    least = float((cost * w**2).sum())
    for size in range(1, min(len(w), limit) + 1):
        for kept in itertools.combinations(range(len(w)), size):
            kept = sorted(kept, key=lambda i: w[i])
            lost = float((cost * w**2).sum() - (cost[kept] * w[kept] ** 2).sum())
            for cut in range(size):
                inside = 0.0
                for part in (kept[:cut], kept[cut:]):
                    if part:
                        mean = np.average(w[part], weights=cost[part])
                        inside += float((cost[part] * (w[part] - mean) ** 2).sum())
                least = min(least, lost + inside)
    return least


@pytest.mark.usefixtures("as_for_users")
def test_near_the_weighted_optimum_of_eight_weights() -> None:
    gaps = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        w, cost = rng.normal(size=8).astype(np.float32), np.exp2(rng.integers(-4, 5, size=8))
        cost = cost.astype(np.float32)
        limit = int(rng.integers(1, 6))  # so little that more than one bit does not pay
        codes = project(
            {"w": w.reshape(2, 4)}, Budget(bits=limit), curvature={"w": cost.reshape(2, 4)}
        )
        found = float((cost * (w - np.asarray(dequantize(codes)["w"]).ravel()) ** 2).sum())
        gaps.append(
            (found - best_weighted(w.astype(np.float64), cost, limit)) / float((cost * w**2).sum())
        )
    assert np.mean(gaps) < 0.06
    assert max(gaps) < 0.4


def code_length(codes: Any) -> float:
    """`rate_bits(codes, "coded")`, by hand."""
    total = 0.0
    for leaf in codes.values():
        counts = np.unique(np.asarray(leaf.code), return_counts=True)[1]
        number = counts.sum()
        used = len(np.unique(np.asarray(leaf.code)[support(leaf)]))
        total += float((counts * np.log2(number / counts)).sum())
        total += used * (32 + math.log2(number) / 2)
    return total


def test_coded_rate_is_the_code_length() -> None:
    codes = project(net(7), Budget(bits=5000), rate="coded")
    assert rate_bits(codes, "coded") == pytest.approx(code_length(codes))
    assert 0.95 * 5000 < rate_bits(codes, "coded") <= 5000


@pytest.mark.parametrize("density", [1e-4, 1e-3, 1e-2])
def test_coded_rate_of_many_weights(density: float) -> None:
    """Nearly all of which are zero, and their bits a small difference of large numbers."""
    rng = np.random.default_rng(0)
    for size in rng.integers(1_000_000, 60_000_000, 20):
        counts = rng.multinomial(int(density * size), [0.4, 0.3, 0.2, 0.1])
        found = CodedRate().of_leaf(
            jnp.zeros(257, jnp.int32).at[:4].set(counts), jnp.array([2]), jnp.int32(size), (257,)
        )
        all_counts = np.append(counts, size - counts.sum()).astype(np.float64)
        code = (all_counts * np.log2(size / all_counts)).sum() + 4 * (32 + math.log2(size) / 2)
        assert float(found[0]) == pytest.approx(code, rel=2.0**-20)


def test_without_a_limit_scales_are_paid_for() -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)}
    plan = plan_of(Treatment(scale="channel"))
    codes = project(weights, Budget(bits=math.inf), rate="coded", plan=plan)
    assert support(codes["w"]).mean() > 0.9


def test_values_stay_those_of_their_weights() -> None:
    """Prices and costs may make two values change places."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        w = np.exp2(rng.uniform(-3, 0, size=(40, 40))).astype(np.float32)
        cost = np.exp2(2 * rng.integers(-3, 4, size=w.shape)).astype(np.float32)
        codes = validate(project({"w": w}, Budget(bits=2500), rate="coded", curvature={"w": cost}))
        code, codebook = np.asarray(codes["w"].code), np.asarray(codes["w"].codebook)
        for value in range(1, code.max() + 1):
            mean = np.average(w[code == value], weights=cost[code == value])
            assert codebook[value] == pytest.approx(mean, rel=1e-3)


def test_values_that_changed_places_are_put_in_order_with_their_prices() -> None:
    levels = jnp.array([-1.0, 0.0, 2.0, -3.0, -4.0, 0.0, 6.0, 5.0])
    found = ascending(Book(levels, 10 + jnp.arange(8.0)), (3, 5))
    np.testing.assert_array_equal(found.levels, [-1, 0, 2, -4, -3, 0, 5, 6])
    np.testing.assert_array_equal(found.slot_bits, [10, 11, 12, 14, 13, 15, 17, 16])


def test_a_channel_of_next_to_nothing() -> None:
    weights = net(3)
    weights["dense"][:, 3] = 0
    weights["dense"][4, 3] = 1.5e-38
    codes = validate(project(weights, Budget(ratio=20), plan=plan_of(Treatment(scale="channel"))))
    assert rate_bits(codes) > 0.99 * 32 * WEIGHTS / 20
    assert support(codes["dense"]).any()


def test_of_equal_groups_the_first_are_kept() -> None:
    plan = plan_of(Treatment(granularity=Block((2, 4))))
    codes = project({"w": np.ones((16, 16), np.float32)}, Budget(bits=60), plan=plan)
    expected = np.zeros((16, 16), bool)
    expected[:2], expected[2:4, :12] = True, True
    np.testing.assert_array_equal(support(codes["w"]), expected)


def test_coded_rate_gives_less_error_at_the_same_code_length() -> None:
    for seed in range(3):
        weights = net(seed)
        by_paper = project(weights, Budget(ratio=40))
        length = rate_bits(by_paper, "coded")
        by_length = project(weights, Budget(bits=length), rate="coded")
        assert error(weights, by_length) < error(weights, by_paper)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([(1, 4), (2, 4), (4, 8), (3, 3)]), st.integers(-3, 2))
def test_the_largest_of_every_m(seed: int, pattern: tuple[int, int], axis: int) -> None:
    n, m = pattern
    x = np.random.default_rng(seed).integers(0, 5, size=(24, 24, 24)).astype(np.float32)
    chosen = np.asarray(largest_of(jnp.asarray(x), NofM(n, m, axis)))
    groups = np.moveaxis(x, axis, -1).reshape(-1, m)
    ranks = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1, kind="stable")
    np.testing.assert_array_equal(np.moveaxis(chosen, axis, -1).reshape(-1, m), ranks < n)


def test_means_of_groups() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    mean = np.asarray(group_mean(jnp.asarray(x), (2, 3)))
    np.testing.assert_allclose(
        mean, [[x[:2, :3].mean(), x[:2, 3:].mean()], [x[2:, :3].mean(), x[2:, 3:].mean()]]
    )
    np.testing.assert_array_equal(np.asarray(of_group(jnp.asarray(mean), (2, 3)))[::2, ::3], mean)


def test_plans_are_taken_and_checked() -> None:
    weights = net(8)
    plan = jpq_jax.plan_leaves(weights, plan_of(TREATMENTS["blocks"]))
    codes = project(weights, Budget(ratio=20), plan=plan)
    again = project(weights, Budget(ratio=20), plan=plan_of(TREATMENTS["blocks"]))
    jax.tree.map(np.testing.assert_array_equal, codes, again)
    with pytest.raises(ValueError, match="plan of leaves"):
        project({"other": weights["dense"]}, Budget(ratio=20), plan=plan)


@pytest.mark.parametrize("name", ["2:4", "uniform channels"] if THOROUGH else ["2:4"])
def test_in_training(name: str) -> None:
    """Params on the feasible set after every update, and codes that give the same weights."""
    weights = {k: jnp.asarray(w) for k, w in net(9).items()}
    compress = jpq_jax.latent(
        optax.adam(0.01),
        jpq_jax.joint(Budget(ratio=20)),
        every=2,
        where=plan_of(TREATMENTS[name]),
        curvature=lambda state: optax.tree.get(state, "nu"),
    )
    state = compress.init(weights)
    update = jax.jit(compress.update)
    rng = np.random.default_rng(0)
    params = weights
    for _ in range(5):
        gradients = {
            k: jnp.asarray(rng.normal(size=w.shape), jnp.float32) for k, w in weights.items()
        }
        with jax.numpy_dtype_promotion("standard"):  # which Adam needs
            updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    codes = validate(jpq_jax.finalize(params, state))
    assert rate_bits(codes) <= 32 * WEIGHTS / 20
    same = [np.mean((np.asarray(params[k]) != 0) == support(codes[k])) for k in params]
    assert min(same) > 0.9
    assert int(optax.tree.get(state, "joint_bits_used")) <= 32 * WEIGHTS / 20


def test_eight_devices_equal_one_and_gather_nothing() -> None:
    """A leaf of each of two treatments, or of all that the others are made of, of weights and costs whose sums are exact, whatever their order."""
    rng = np.random.default_rng(0)
    names, shape = ("2:4", "uniform channels"), (64, 32)
    if THOROUGH:
        names += ("element", "blocks", "inputs")
    weights, costs = {}, {}
    for name in names:
        weights[name] = (rng.integers(-99, 100, size=shape) / 64).astype(np.float32)
        costs[name] = np.exp2(rng.integers(-3, 4, size=shape)).astype(np.float32)

    def coded(weights: Any, costs: Any) -> Any:
        return project(
            weights, Budget(ratio=20), curvature=costs, plan=lambda path, _: TREATMENTS[path]
        )

    expected = jax.jit(coded)(weights, costs)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, P("x", "y"))
        spread = [jax.tree.map(lambda x: jax.device_put(x, placed), x) for x in (weights, costs)]
        compiled = jax.jit(coded, compiler_options=AS_FOR_USERS).lower(*spread).compile()
        codes = compiled(*spread)
    for name in names:
        np.testing.assert_array_equal(codes[name].code, expected[name].code, err_msg=name)
        np.testing.assert_allclose(codes[name].codebook, expected[name].codebook, rtol=1e-6)
        assert codes[name].code.sharding.spec == P("x", "y")
    assert gathered(compiled.as_text()) <= max(shape)  # numbers of each row, or channel


def test_fisher_is_the_mean_of_squared_gradients() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 3)).astype(np.float32), rng.normal(size=11).astype(np.float32)
    params = {"w": jnp.asarray(rng.normal(size=3), jnp.float32), "steps": jnp.int32(2)}

    def loss(params: Any, example: Any) -> jax.Array:
        inputs, target = example
        return (inputs @ params["w"] - target) ** 2

    found = jpq_jax.diagonal_fisher(loss, params, (x, y), batch=4)
    gradients = 2 * (x @ np.asarray(params["w"]) - y)[:, None] * x
    np.testing.assert_allclose(found["w"], (gradients**2).mean(axis=0), rtol=1e-4)
    assert float(found["steps"]) == 0
    with pytest.raises(ValueError, match="examples"):
        jpq_jax.diagonal_fisher(loss, params, (x[:0], y[:0]))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: NofM(5, 4), "n=5"),
        (lambda: Block((0, 2)), "Block"),
        (lambda: Treatment(grid="cubic"), "grid"),
        (lambda: Treatment(scale="row"), "scale"),
        (lambda: Treatment(granularity="channel"), "granularity"),
        (lambda: project(net(0), Budget(ratio=9), plan=plan_of(Treatment(granularity=Block((5, 5))))), "'conv'.*whole blocks"),
        (lambda: project(net(0), Budget(ratio=9), plan=plan_of(Treatment(granularity=NofM(1, 7)))), "'conv'.*multiple of 7"),
        (lambda: project(net(0), Budget(ratio=9), plan=plan_of(Treatment(granularity=Channels(4)))), "'conv'.*axis"),
        (lambda: project(net(0), Budget(ratio=9), rate="bytes"), "rate"),
        (lambda: jpq_jax.joint(Budget(ratio=9), rate="bytes"), "rate"),
        (lambda: project(net(0), Budget(ratio=9), curvature={"conv": np.ones((3, 3, 4, 8))}), "'dense'.*none"),
        (lambda: project(net(0), Budget(ratio=9), curvature=dict.fromkeys(SHAPES, np.ones(3))), "'conv'.*shape"),
        (lambda: project(net(0), Budget(ratio=9), curvature={k: -np.ones(s) for k, s in SHAPES.items()}), "'conv'.*at least 0"),
        (lambda: jpq_jax.project_alternating(net(0), Budget(ratio=9), where=plan_of(TREATMENTS["2:4"])), "'conv'.*published"),
        (lambda: jpq_jax.admm(Budget(ratio=9), rho=1.0, every=2, learning_rate=1.0, where=plan_of(TREATMENTS["2:4"])).init(net(0)), "'conv'.*published"),
        (lambda: project({"none": np.ones((0, 5)), **net(0)}, Budget(ratio=9), plan=plan_of(Treatment(granularity=Channels()))), "'none'.*empty"),
        (lambda: jpq_jax.project_params(jpq_jax.clustering(2), where=plan_of(TREATMENTS["uniform"])).init(net(0)), "clustering"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make()
