"""The two knapsacks of Yang et al., CVPR 2020 (arXiv 1910.05897), as pure functions of arrays.

Both are greedy, as published. Neither sorts, flattens or concatenates the weights: the support knapsack
finds its threshold by bisection, and each step of it only compares and counts, so sharded leaves stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

INFINITY = 0x7F800000  # the bit pattern of float32 infinity; the largest magnitude there is
_MANTISSA = 1 << 23
_GROUPS = (
    3  # distinct float32 values of a leaf that one unit step of the threshold can hold, at most
)
_SCORE_UNITS = 840  # least common multiple of the bit-widths 1..8: makes d / b a whole number


class Cut(NamedTuple):
    """Which weights of each leaf are kept: magnitude >= threshold, or = tie at a flat index < stop.

    Magnitudes are float32 bit patterns as int32, whose order is that of the numbers.

    Attributes:
      threshold: [leaves] int32.
      tie: [leaves] int32; -1 where no tie is split.
      stop: [leaves] uint32.
    """

    threshold: jax.Array
    tie: jax.Array
    stop: jax.Array


class Choice(NamedTuple):
    """Attributes:
    item: [groups] int32, the item taken of each group.
    feasible: [] bool; False if even the cheapest items exceed the capacity, which are then returned.
    """

    item: jax.Array
    feasible: jax.Array


def support_knapsack(
    weights: Sequence[jax.Array], bits: jax.Array, capacity: jax.Array
) -> list[jax.Array]:
    """The 0-1 knapsack over the support: which weights to keep, over all leaves together.

    Solves, greedily by profit per cost as published,

        max sum_i w_i^2 z_i   subject to   sum_i b_leaf(i) z_i <= capacity,   z in {0, 1}

    Weights are taken in descending order of w^2 / b, compared exactly (in integers), until the first that
    does not fit; ties go to the earlier leaf, then to the lower row-major index. Zeros are never kept.

    Args:
      weights: leaves of any shape and float dtype, compared as float32; NaN counts as infinite.
      bits: [leaves] int32 in 1..8, the cost of one weight of each leaf.
      capacity: [] uint32, in bits. The sum of b over all weights must be below 2**32.

    Returns:
      A bool mask per leaf.
    """
    magnitudes = [magnitude_of(w) for w in weights]
    return kept_by(_cut(magnitudes, bits, capacity), magnitudes)


def kept_by(cut: Cut, magnitudes: Sequence[jax.Array]) -> list[jax.Array]:
    """A bool mask per leaf."""
    return [
        (m >= cut.threshold[i]) | ((m == cut.tie[i]) & (_flat_index(m.shape) < cut.stop[i]))
        for i, m in enumerate(magnitudes)
    ]


def magnitude_of(w: jax.Array) -> jax.Array:
    """[...] int32, the bit pattern of the float32 magnitude; that of infinity for NaN."""
    pattern = lax.bitcast_convert_type(w.astype(jnp.float32), jnp.int32) & 0x7FFFFFFF
    return jnp.minimum(pattern, INFINITY)


def _flat_index(shape: tuple[int, ...]) -> jax.Array:
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def counts_of(masks: Sequence[jax.Array]) -> jax.Array:
    """[leaves] uint32, how many are true."""
    return jnp.stack([jnp.sum(m, dtype=jnp.uint32) for m in masks])


def _cut(magnitudes: Sequence[jax.Array], bits: jax.Array, capacity: jax.Array) -> Cut:
    """Bisects the unit threshold y (a weight is kept if w^2 / b >= y^2), then settles the step below it."""
    prices = bits.astype(jnp.uint32)

    def cost(unit: jax.Array) -> jax.Array:
        bounds = _boundary(unit, bits)
        counts = counts_of([m >= bounds[i] for i, m in enumerate(magnitudes)])
        return jnp.sum(prices * counts, dtype=jnp.uint32)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # cost(high) fits
        middle = jnp.maximum(low + (high - low) // 2, 1)  # zeros are never kept
        fits = cost(middle) <= capacity
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    low, high = lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(INFINITY + 1)))
    return _settle(magnitudes, bits, capacity - cost(high), low, high)


def _settle(
    magnitudes: Sequence[jax.Array],
    bits: jax.Array,
    left: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> Cut:
    """Spends what is left on the weights with low^2 <= w^2 / b < high^2: a few distinct values per leaf.

    Each (leaf, value) is a group of ties. Groups are taken whole in order of score while they fit, and the
    first that does not is split by index.
    """
    leaves = len(magnitudes)
    below, threshold = _boundary(low, bits), _boundary(high, bits)
    values = (
        below[:, None] + jnp.arange(_GROUPS, dtype=jnp.int32)[None, :]
    )  # [leaves, groups], consecutive floats
    real = (values < threshold[:, None]) & (values > 0)

    def members(group: jax.Array) -> jax.Array:
        return counts_of([m == group[i] for i, m in enumerate(magnitudes)])

    counts = jnp.where(real, lax.map(members, values.T).T, 0)
    prices = bits.astype(jnp.uint32)[:, None]

    whole, part = _excess(values, low, bits)
    leaf = jnp.broadcast_to(jnp.arange(leaves, dtype=jnp.int32)[:, None], values.shape)
    keys = [jnp.where(real, ~k, jnp.uint32(0xFFFFFFFF)) for k in (whole, part)]
    order = [
        x.reshape(-1)
        for x in (*keys, leaf, jnp.arange(values.size, dtype=jnp.int32).reshape(values.shape))
    ]
    by_score = lax.sort(order, num_keys=3)[-1]

    costs = (counts * prices).reshape(-1)[by_score]
    spent = jnp.cumsum(costs, dtype=jnp.uint32)
    taken = spent <= left
    first_out = jnp.argmin(taken)  # 0 if all are taken, then nothing is split
    split = jnp.where(~taken[first_out], by_score[first_out], -1)
    remainder = left - (spent - costs)[first_out]

    whole_groups = jnp.zeros(values.size, bool).at[by_score].set(taken).reshape(values.shape) & real
    threshold = jnp.min(jnp.where(whole_groups, values, threshold[:, None]), axis=1)
    is_split = (jnp.arange(values.size, dtype=jnp.int32) == split).reshape(values.shape) & real
    tie = jnp.max(jnp.where(is_split, values, -1), axis=1)
    quota = jnp.max(jnp.where(is_split, remainder // prices, 0), axis=1)
    return Cut(threshold, tie, index_of_quota(magnitudes, tie, quota))


def index_of_quota(magnitudes: Sequence[jax.Array], tie: jax.Array, quota: jax.Array) -> jax.Array:
    """[leaves] uint32: the largest row-major index below which at most `quota` weights equal `tie`."""
    sizes = jnp.asarray([m.size for m in magnitudes], jnp.uint32)

    def step(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # at most quota below low; more than quota below high
        middle = low + (high - low) // 2
        found = counts_of(
            [(m == tie[i]) & (_flat_index(m.shape) < middle[i]) for i, m in enumerate(magnitudes)]
        )
        fits = found <= quota
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    def unsettled(bracket: tuple[jax.Array, jax.Array]) -> jax.Array:
        low, high = bracket
        return jnp.any((high - low > 1) & (quota > 0))

    return lax.while_loop(unsettled, step, (jnp.zeros_like(sizes), sizes))[0]


def _decode(pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mantissa m (uint32) and biased exponent e >= 1 of a float32 pattern: value = m * 2**(e - 150)."""
    exponent = pattern >> 23
    fraction = pattern & (_MANTISSA - 1)
    mantissa = jnp.where(exponent > 0, fraction | _MANTISSA, fraction)
    return mantissa.astype(jnp.uint32), jnp.maximum(exponent, 1)


def _boundary(unit: jax.Array, bits: jax.Array) -> jax.Array:
    """[leaves] int32: the smallest float32 pattern x with x^2 >= b * unit^2, exactly.

    In units of the last place of `unit` the boundary is ceil(m sqrt(b)) < 2**26: a float estimate is a
    few units off at most, and the sign of k^2 - b m^2 is exact in wrapping 32-bit arithmetic near it.
    """
    mantissa, exponent = _decode(unit)
    estimate = mantissa.astype(jnp.float32) * jnp.sqrt(bits.astype(jnp.float32))
    start = jnp.maximum(estimate.astype(jnp.int32) - 8, 0).astype(jnp.uint32)
    near = start[:, None] + jnp.arange(17, dtype=jnp.uint32)[None, :]  # [leaves, 17]
    square = bits.astype(jnp.uint32)[:, None] * mantissa * mantissa
    short = lax.bitcast_convert_type(near * near - square, jnp.int32) < 0
    ceiling = start + jnp.sum(short, axis=1, dtype=jnp.uint32)

    beyond = ceiling[:, None] >= jnp.asarray([2 * _MANTISSA, 4 * _MANTISSA], jnp.uint32)[None, :]
    shift = jnp.sum(beyond, axis=1, dtype=jnp.uint32)
    rounded = (ceiling + (jnp.uint32(1) << shift) - 1) >> shift
    exponent = exponent + shift.astype(jnp.int32)
    # The implicit bit of a normal mantissa carries into the exponent; a subnormal one has none to carry.
    pattern = ((exponent - 1) << 23) + rounded.astype(jnp.int32)
    pattern = jnp.where(exponent >= 255, INFINITY, jnp.minimum(pattern, INFINITY))
    return jnp.where(unit > INFINITY, INFINITY + 1, pattern)


def _excess(values: jax.Array, unit: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Order of w^2 / b just above unit^2, exactly: (w^2 - b unit^2) / b as a whole part and 840ths.

    The difference is below 2**28 units of unit's last place squared, so wrapping arithmetic keeps it exact.
    """
    unit_mantissa, unit_exponent = _decode(unit)
    mantissa, exponent = _decode(values)
    scaled = mantissa << jnp.maximum(exponent - unit_exponent, 0).astype(jnp.uint32)
    b = bits.astype(jnp.uint32)[:, None]
    difference = scaled * scaled - b * unit_mantissa * unit_mantissa
    return difference // b, (difference % b) * (_SCORE_UNITS // b)


def choice_knapsack(cost: jax.Array, profit: jax.Array, capacity: jax.Array) -> Choice:
    """The multiple-choice knapsack: one item per group, greedily by profit per cost, as published.

        max sum_g profit[g, x_g]   subject to   sum_g cost[g, x_g] <= capacity

    Dominated items are dropped and the upper convex hull of each group is kept; from the cheapest items
    on, increments along the hulls are taken in descending order of profit per cost; one that does not fit
    closes its group. The result is below the optimum by at most the profit of the first increment that
    did not fit.

    Args:
      cost: [groups, items] uint32, ascending along the items of a group.
      profit: [groups, items] float32.
      capacity: [] uint32.
    """
    chex.assert_rank([cost, profit], 2)
    chex.assert_equal_shape([cost, profit])
    groups, items = cost.shape
    hull = _upper_hull(cost, profit)
    step_cost, step_ratio = _increments(cost, profit, hull)

    def take(
        state: tuple[jax.Array, jax.Array, jax.Array], flat: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        choice, closed, left = state
        g, item = flat // items, flat % items
        valid = (step_ratio[g, item] > -jnp.inf) & ~closed[g]
        fits = valid & (step_cost[g, item] <= left)
        choice = choice.at[g].set(jnp.where(fits, item, choice[g]))
        closed = closed.at[g].set(closed[g] | (valid & ~fits))
        return (choice, closed, left - jnp.where(fits, step_cost[g, item], 0)), None

    cheapest = jnp.argmax(hull, axis=1).astype(jnp.int32)
    base, overflows = _sum(jnp.take_along_axis(cost, cheapest[:, None], axis=1))
    feasible = (base <= capacity) & ~overflows
    left = jnp.where(feasible, capacity - base, 0)
    order = jnp.argsort(-step_ratio.reshape(-1), stable=True).astype(jnp.int32)
    closed = jnp.broadcast_to(~feasible, (groups,))
    (choice, _, _), _ = lax.scan(take, (cheapest, closed, left), order)
    return Choice(choice, feasible)


def _sum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of fewer than 2**16 uint32 numbers, and whether it is 2**32 or more."""
    low = jnp.sum(x & 0xFFFF, dtype=jnp.uint32)
    high = jnp.sum(x >> 16, dtype=jnp.uint32) + (low >> 16)
    return (high << 16) | (low & 0xFFFF), high >= 1 << 16


def _slope(cost: jax.Array, profit: jax.Array) -> jax.Array:
    """[groups, i, j]: profit per cost from item i to item j."""
    rise = profit[:, None, :] - profit[:, :, None]
    rising = cost[:, None, :] > cost[:, :, None]
    # Subtracted as integers: float32 does not tell large costs apart.
    run = jnp.where(rising, cost[:, None, :] - cost[:, :, None], 0).astype(jnp.float32)
    return jnp.where(run > 0, rise / jnp.where(run > 0, run, 1), jnp.inf)


def _upper_hull(cost: jax.Array, profit: jax.Array) -> jax.Array:
    """[groups, items] bool: the items that are neither dominated nor on or below a chord of two others."""
    items = cost.shape[1]
    index = jnp.arange(items, dtype=jnp.int32)
    earlier = index[None, :, None] < index[None, None, :]  # [1, i, j]: i before j
    as_cheap = cost[:, :, None] <= cost[:, None, :]
    better = profit[:, :, None] > profit[:, None, :]
    equal = profit[:, :, None] == profit[:, None, :]
    kept = ~jnp.any(as_cheap & (better | (equal & earlier)), axis=1)

    slope = _slope(cost, profit)
    triple = earlier[:, :, :, None] & earlier[:, None, :, :]  # [1, i, j, k]
    present = kept[:, :, None, None] & kept[:, None, None, :] & triple
    below = slope[:, :, :, None] <= slope[:, None, :, :]
    return kept & ~jnp.any(present & below, axis=(1, 3))


def _increments(cost: jax.Array, profit: jax.Array, hull: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cost and profit per cost of reaching each hull item from the one before; -inf where there is none."""
    index = jnp.broadcast_to(jnp.arange(cost.shape[1], dtype=jnp.int32), cost.shape)
    last = lax.cummax(jnp.where(hull, index, -1), axis=1)
    before = jnp.concatenate([jnp.full_like(last[:, :1], -1), last[:, :-1]], axis=1)
    previous = jnp.maximum(before, 0)
    step_cost = cost - jnp.take_along_axis(cost, previous, axis=1)
    slope = jnp.take_along_axis(_slope(cost, profit), previous[:, None, :], axis=1)[:, 0]
    # Rounding must not put a later increment of a group before an earlier one.
    falling = lax.cummin(jnp.where(hull & (before >= 0), slope, jnp.inf), axis=1)
    return step_cost, jnp.where(hull & (before >= 0), falling, -jnp.inf)
