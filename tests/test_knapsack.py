"""The two knapsacks: the support against a float64 sort, the choice against brute force over all combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jpq_jax.allocation.knapsack import choice_knapsack, support_knapsack

FLOAT32 = np.finfo(np.float32)
TINY = np.float32(FLOAT32.smallest_subnormal)
NO_LIMIT = 2**32 - 1
CASES = settings(deadline=None, derandomize=True, max_examples=300)

knapsack = jax.jit(support_knapsack)
choose = jax.jit(choice_knapsack)
choose_many = jax.jit(jax.vmap(choice_knapsack))


def check_support(weights: Sequence[Any], bits: Sequence[int], capacity: int) -> None:
    """Equal to the oracle on every weight."""
    masks = knapsack(list(weights), jnp.asarray(bits, jnp.int32), jnp.uint32(capacity))
    wanted = oracles.support([np.asarray(w) for w in weights], bits, capacity)
    for mask, want in zip(masks, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), want)


def capacities(weights: Sequence[Any], bits: Sequence[int]) -> list[int]:
    """Nothing, next to nothing, all, one bit less, and places between."""
    most = sum(b * np.size(w) for w, b in zip(weights, bits, strict=True))
    return sorted({0, 1, 7, most // 3, most // 2, max(most - 1, 0), most, NO_LIMIT})


def mixed_leaves(seed: int = 0) -> list[np.ndarray]:
    """0-d, 5-d, empty, bfloat16 and float16 leaves."""
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.normal(), np.float32),
        rng.normal(size=(2, 3, 2, 2, 3)).astype(np.float32),
        np.zeros((0, 3), np.float32),
        rng.normal(size=(4, 9)).astype(jnp.bfloat16),
        rng.normal(size=11).astype(np.float16),
    ]


@pytest.mark.parametrize("bits", [[1] * 5, [8] * 5, [3, 8, 2, 7, 5], [4, 1, 6, 2, 8]])
def test_support_of_mixed_leaves(bits: list[int]):
    leaves = mixed_leaves()
    for capacity in capacities(leaves, bits):
        check_support(leaves, bits, capacity)


def neighbours(value: float, count: int, step: int = 1) -> np.ndarray:
    """Consecutive float32 numbers from `value` on, up or down, with alternating signs."""
    pattern = np.float32(value).view(np.int32) + step * np.arange(count, dtype=np.int32)
    return pattern.view(np.float32) * np.where(np.arange(count) % 2, -1, 1).astype(np.float32)


HOSTILE = {
    "all zeros": lambda n: np.zeros(n, np.float32),
    "negative zeros": lambda n: np.full(n, -0.0, np.float32),
    "one value": lambda n: np.full(n, 0.3, np.float32),
    "one value of both signs": lambda n: np.where(np.arange(n) % 3, 0.3, -0.3).astype(np.float32),
    "one nonzero": lambda n: np.where(np.arange(n) == n - 1, 0.3, 0).astype(np.float32),
    "adjacent floats": lambda n: neighbours(1.0, n),
    "adjacent floats below a power of two": lambda n: neighbours(1.9999995, n),
    "smallest subnormals": lambda n: neighbours(0.0, n),
    "subnormals and normals": lambda n: neighbours(FLOAT32.smallest_normal - 5 * TINY, n),
    "largest": lambda n: neighbours(FLOAT32.max, n, step=-1),
    "largest and smallest": lambda n: np.where(np.arange(n) % 2, FLOAT32.max, TINY).astype(
        np.float32
    ),
    "all scales": lambda n: np.geomspace(1e-44, 3e38, n).astype(np.float32),
    "powers of two": lambda n: np.float32(2.0) ** (np.arange(n) % 7 - 3).astype(np.float32),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_support_of_hostile_weights(name: str):
    leaves = [HOSTILE[name](n) for n in (7, 12, 5)]
    for bits in ([1, 2, 8], [8, 4, 2], [3, 3, 3], [5, 6, 7]):
        for capacity in [*capacities(leaves, bits), 20, 33]:
            check_support(leaves, bits, capacity)


@pytest.mark.parametrize("bits", range(1, 9))
def test_support_of_one_leaf_keeps_the_largest(bits: int):
    w = np.random.default_rng(bits).normal(size=24).astype(np.float32)
    for capacity in range(0, 24 * bits + 2, 5):
        check_support([w], [bits], capacity)
        mask = knapsack([w], jnp.array([bits]), jnp.uint32(capacity))[0]
        assert int(mask.sum()) == min(capacity // bits, 24)


def tie_prone_floats() -> st.SearchStrategy[float]:
    """Any finite float32, and numbers that tie across bit-widths: w^2 / b = (2w)^2 / 4b."""
    few = st.sampled_from(
        [0.0, 1.0, -1.0, 2.0, -2.0, float(np.nextafter(np.float32(1), np.float32(2))), 1.5]
    )
    return few | st.floats(width=32, allow_nan=False, allow_infinity=False)


@CASES
@given(
    flat=st.lists(tie_prone_floats(), min_size=16, max_size=16),
    bits=st.lists(st.integers(1, 8), min_size=3, max_size=3),
    capacity=st.integers(0, 130),
)
def test_support_equals_the_sort(flat: list[float], bits: list[int], capacity: int):
    w = np.asarray(flat, np.float32)
    check_support([w[0].reshape(()), w[1:7].reshape(2, 3), w[7:].reshape(1, 3, 3)], bits, capacity)


def test_support_of_thousands_of_near_ties():
    """Weights a few units apart around v, 2v and v sqrt(b), so that scores of different leaves all but tie."""
    rng = np.random.default_rng(3)
    cases, leaves, size = 3000, 3, 6
    bits = rng.integers(1, 9, (cases, leaves))
    base = rng.uniform(0.5, 2, (cases, 1, 1)) * 2.0 ** rng.integers(-140, 120, (cases, 1, 1))
    near = (base * np.sqrt(bits)[:, :, None] * 2.0 ** rng.integers(-1, 2, (cases, 1, 1))).astype(
        np.float32
    )
    shift = rng.integers(0, 4, (cases, leaves, size), dtype=np.int32)
    weights = (near.view(np.int32) + shift).view(np.float32)
    capacity = rng.integers(0, 100, cases)

    run = jax.jit(jax.vmap(lambda w, b, c: jnp.stack(support_knapsack(list(w), b, c))))
    masks = np.asarray(
        run(weights, jnp.asarray(bits, jnp.int32), jnp.asarray(capacity, jnp.uint32))
    )
    for mask, w, b, c in zip(masks, weights, bits, capacity, strict=True):
        np.testing.assert_array_equal(mask, np.stack(oracles.support(list(w), b, c)))


def test_support_of_a_network():
    rng = np.random.default_rng(4)
    shapes = [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]
    leaves = [rng.normal(0, 1 / np.sqrt(s[-2]), s).astype(np.float32) for s in shapes]
    leaves[2] = np.round(leaves[2], 3)  # many ties
    for bits, capacity in ([4, 2, 1, 2], 7_000), ([3, 3, 3, 3], 64_575), ([5, 6, 7, 8], 1_722_001):
        check_support(leaves, bits, capacity)


def test_support_of_sharded_leaves():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    rng = np.random.default_rng(5)
    leaves = [rng.integers(-3, 4, shape).astype(np.float32) for shape in ((16, 5), (3, 8))]
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(w, NamedSharding(mesh, spec))
            for w, spec in zip(leaves, (P("d"), P(None, "d")), strict=True)
        ]
        for capacity in (0, 100, 151):
            check_support(placed, [2, 3], capacity)


def test_nan_counts_as_infinite():
    w = np.array([1, np.nan, -np.inf, 0, 3], np.float32)
    masks = knapsack([w], jnp.array([2]), jnp.uint32(4))
    np.testing.assert_array_equal(np.asarray(masks[0]), [False, True, True, False, False])


# The multiple-choice knapsack.


def ascending_costs(rng: np.random.Generator, shape: tuple[int, ...], high: int) -> np.ndarray:
    return np.sort(rng.integers(0, high, shape), axis=-1).astype(np.uint32)


def taken(table: np.ndarray, item: np.ndarray) -> np.ndarray:
    """What the items taken cost, or bring, summed over the groups."""
    of_item = np.take_along_axis(table, item[..., None], axis=-1)[..., 0]
    return of_item.astype(np.int64 if table.dtype == np.uint32 else np.float64).sum(axis=-1)


@pytest.mark.parametrize("kind", ["any profits", "falling profits", "few whole numbers"])
def test_choice_is_within_the_greedy_bound_of_brute_force(kind: str):
    rng = np.random.default_rng(6)
    shape = (200, 4, 4)
    cost = ascending_costs(rng, shape, 8 if kind == "few whole numbers" else 1000)
    profit = rng.normal(size=shape)
    if kind == "few whole numbers":
        profit = rng.integers(-3, 4, shape)
    elif kind == "falling profits":
        profit = -np.sort(rng.exponential(size=shape), axis=-1)
    profit = profit.astype(np.float32)
    capacity = rng.integers(0, cost.max(axis=-1).sum(axis=-1) + 1).astype(np.uint32)
    chosen = choose_many(cost, profit, capacity)
    item, feasible = np.asarray(chosen.item), np.asarray(chosen.feasible)
    profits = taken(profit, item)
    for case in range(200):
        best = oracles.best_choice(cost[case], profit[case], int(capacity[case]))
        published = oracles.choice(cost[case], profit[case], int(capacity[case]))
        assert bool(feasible[case]) == (best is not None) == published.feasible
        assert list(item[case]) == published.item
        if best is not None:
            assert profits[case] <= best + 1e-5
            assert best - profits[case] <= published.missed + 1e-5


@pytest.mark.parametrize(
    ("low", "high"), [(0, 8), (0, 100_000), (2**20, 2**20 + 50), (0, 2**32), (2**32 - 400, 2**32)]
)
def test_choice_never_exceeds_the_budget(low: int, high: int):
    rng = np.random.default_rng(7)
    cases, groups = 10_000, 3
    cost = np.sort(rng.integers(low, high, (cases, groups, 8)), axis=-1)
    # The cheapest items must be countable in 32 bits: where they would not be, the other groups are free.
    cost[:, 1:] = np.where(cost[:, :, 0].sum(axis=1)[:, None, None] < 2**32, cost[:, 1:], 0)
    cost[::7] = cost[::7, :, :1]  # all equal
    cost[1::7, 0] = 0
    profit = rng.normal(size=cost.shape).astype(np.float32)
    profit[2::7] = np.round(profit[2::7])  # ties
    profit[3::7] = np.sort(profit[3::7], axis=-1)
    cheapest, most = cost.min(axis=-1).sum(axis=-1), cost.max(axis=-1).sum(axis=-1)
    capacity = (cheapest + (most - cheapest) * rng.uniform(-0.1, 1.1, cases)).clip(0, 2**32 - 1)
    capacity[::5] = np.minimum(cheapest, 2**32 - 1)[::5]
    capacity = capacity.astype(np.uint32)

    chosen = choose_many(cost.astype(np.uint32), profit, capacity)
    feasible, spent = (
        np.asarray(chosen.feasible),
        taken(cost.astype(np.uint32), np.asarray(chosen.item)),
    )
    np.testing.assert_array_equal(feasible, cheapest <= capacity)
    assert feasible.any()
    assert (spent[feasible] <= capacity[feasible]).all()
    np.testing.assert_array_equal(spent[~feasible], cheapest[~feasible])


@pytest.mark.parametrize("base", [0, 2**24, 2**31, 2**32 - 40])
def test_choice_compares_large_costs_exactly(base: int):
    """Slopes depend on differences of costs, however large the costs are."""
    cost = np.array([[0, 10, 20, 30], [0, 0, 0, 0]], np.uint32)
    cost[0] += np.uint32(base)
    profit = np.array([[0, 8, 3, 9], [0, 0, 0, 0]], np.float32)
    for left in range(40):
        if base + left < 2**32:
            chosen = choose(cost, profit, np.uint32(base + left))
            assert list(chosen.item) == oracles.choice(cost, profit, base + left).item


def test_choice_of_groups_that_do_not_fit_in_32_bits_is_infeasible():
    cost = np.full((2, 2), 2**31, np.uint32)
    assert not choose(cost, np.zeros((2, 2), np.float32), np.uint32(NO_LIMIT)).feasible


HAND = {
    "infeasible: the cheapest": ([[3, 4], [5, 6]], [[0, 9], [0, 9]], 7, [0, 0], False),
    "exactly the cheapest": ([[3, 4], [5, 6]], [[0, 9], [0, 9]], 8, [0, 0], True),
    "one step fits, the better": ([[1, 2], [1, 2]], [[0, 2], [0, 3]], 3, [0, 1], True),
    "a tie goes to the earlier group": ([[1, 2], [1, 2]], [[0, 3], [0, 3]], 3, [1, 0], True),
    "all fits": ([[1, 2], [1, 2]], [[0, 2], [0, 3]], 99, [1, 1], True),
    "a dominated item is not taken": (
        [[1, 2, 3], [1, 2, 3]],
        [[0, 5, 4], [5, 5, 5]],
        99,
        [1, 0],
        True,
    ),
    "below a chord is skipped": ([[0, 1, 2], [0, 1, 2]], [[0, 1, 9], [0, 8, 9]], 3, [2, 1], True),
    "on a chord is skipped": ([[0, 1, 2], [0, 1, 2]], [[0, 2, 4], [0, 9, 10]], 2, [0, 2], True),
    "a misfit closes its group": (
        [[0, 9, 10], [0, 1, 2]],
        [[0, 99, 100], [0, 1, 1]],
        8,
        [0, 1],
        True,
    ),
    "free items: the best": ([[0, 0, 0], [0, 0, 0]], [[1, 3, 2], [2, 2, 2]], 0, [1, 0], True),
    "best of the equally cheap": (
        [[2, 2, 3], [0, 0, 1]],
        [[1, 4, 5], [-3, -2, -9]],
        2,
        [1, 1],
        True,
    ),
}


@pytest.mark.parametrize("name", HAND)
def test_choice_by_hand(name: str):
    cost, profit, capacity, item, feasible = HAND[name]
    chosen = choose(np.array(cost, np.uint32), np.array(profit, np.float32), np.uint32(capacity))
    assert list(chosen.item) == item
    assert bool(chosen.feasible) is feasible


def test_choice_checks_its_shapes():
    with pytest.raises(AssertionError):
        choose(np.zeros((2, 3), np.uint32), np.zeros((2, 4), np.float32), np.uint32(0))
