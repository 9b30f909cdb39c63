"""Codebooks when every nonzero has a price: Lloyd's algorithm with a dead zone, on a sketch's tail sums."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.sketch.logarithmic import SIDE, LogSketch, edge_index, edges
from jpq_jax.sketch.slots import (
    by_codebook,
    each,
    following,
    highest_so_far,
    is_first,
    is_last,
    preceding,
    summed,
)

_NONE = float(np.inf)  # a threshold that no weight reaches


class Tails(NamedTuple):
    """Of the weights of one leaf whose magnitude is in bin j or beyond, by class and sign; j = 0 .. SIDE.

    Attributes:
      counts: [classes, 2, SIDE + 1] int32, how many.
      total: [classes, 2, SIDE + 1] float32, sum of their magnitudes, in the sketch's unit.
      mean: [classes, 2, SIDE] float32, of the bins.
      spread: [2, SIDE + 1] float32, integral of the cube root of their density times cost, by which values are placed first.
      middle: [2, SIDE] float32, mean of the bins over all classes.
    """

    counts: jax.Array
    total: jax.Array
    mean: jax.Array
    spread: jax.Array
    middle: jax.Array


class Leaf(NamedTuple):
    """What is to be known of a leaf for its codebooks to be fitted.

    Attributes:
      tails: of its sketch.
      size: [] int32, how many weights it has.
      cost: [classes] float32, of a squared error of 1.
      together: [] int32, how many weights are kept or pruned as one.
      whole: [] bool: a class is kept or pruned as a whole, since its weights are of groups that are. None if that is
        so of no leaf.
      uniform: [] bool: the values are whole multiples of a step. None if that is so of no leaf.
    """

    tails: Tails
    size: jax.Array
    cost: jax.Array
    together: jax.Array
    whole: jax.Array | None
    uniform: jax.Array | None


class Cells(NamedTuple):
    """What each slot is given; zero slots nothing.

    Attributes:
      counts: [classes, slots] int32.
      total: [classes, slots] float32, sum of magnitudes.
    """

    counts: jax.Array
    total: jax.Array


def tails_of(sketch: LogSketch, cost: jax.Array) -> Tails:
    """cost: [classes], of an error."""
    number = sketch.counts.astype(jnp.float32)
    total = number * sketch.mean
    of_all = jnp.sum(number, axis=0)
    middle = jnp.where(
        of_all > 0, jnp.sum(total, axis=0) / jnp.maximum(of_all, 1), edges()[:-1][None]
    )
    # Of weights far apart, what counts is not how wide their bins are, but how far it is to the next.
    weight = jnp.sum(number * cost[:, None, None], axis=0)
    so_far = lax.cummax(jnp.where(of_all > 0, middle, 0), axis=1)
    gap = middle - jnp.pad(so_far[:, :-1], ((0, 0), (1, 0)))
    counts, total, spread = _beyond(sketch.counts, total, jnp.cbrt(weight * gap**2))
    return Tails(counts, total, sketch.mean, spread, middle)


def _beyond(*of_bins: jax.Array) -> list[jax.Array]:
    """The sums of each bin and those beyond it, and of none: [..., SIDE] to [..., SIDE + 1].

    By doubling: the few large weights do not drown in the sum of the many small ones, and one loop is less to compile than three
    running sums.
    """
    bins = jnp.arange(SIDE + 1, dtype=jnp.int32)

    def double(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        other = bins + (1 << i)
        inside, place = other <= SIDE, jnp.minimum(other, SIDE)
        return [
            jnp.where(inside, x + x.at[..., place].get(mode="promise_in_bounds"), x) for x in sums
        ]

    start = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]) for x in of_bins]
    return lax.fori_loop(0, SIDE.bit_length(), double, start)


def _middles(levels: jax.Array, price: jax.Array) -> jax.Array:
    """[slots]: where a slot's value and the next one's cost the same, both being of one sign."""
    other = following(levels)
    apart = other - levels
    dearer = following(price) - price
    return (levels + other) / 2 + jnp.where(apart > 0, dearer / (2 * apart), 0)


def thresholds(levels: jax.Array, price: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """The magnitude from which on weights are kept, for both signs: [2, codebooks] float32, infinite if none is.

    Weight w > 0 is kept if w^2 >= (w - c)^2 + price, c > 0 being the level that is best for it. The gain of keeping
    it grows with w, so that one threshold tells; it is the lowest of those that lie in their own level's cell.
    price: [slots] float32, in the sketch's unit^2.
    """
    middle = _middles(levels, price)
    left = jnp.where(is_first(slots), -jnp.inf, preceding(middle))
    right = jnp.where(is_last(slots), jnp.inf, middle)
    is_positive = np.array([[True], [False]])
    c, inner, outer = (
        jnp.where(is_positive, of_positive[None, :], -of_negative[None, :])
        for of_positive, of_negative in ((levels, levels), (left, right), (right, left))
    )
    is_level = c > 0
    gains_from = c / 2 + price[None, :] / (2 * jnp.where(is_level, c, 1))
    start = jnp.maximum(jnp.maximum(gains_from, inner), 0)
    start = jnp.where(is_level & (start <= outer), start, _NONE)
    return jnp.min(by_codebook(start, slots, _NONE), axis=-1)


def borders(
    levels: jax.Array,
    price: jax.Array,
    threshold: jax.Array,
    slots: tuple[int, ...],
    *,
    flat: bool,
) -> jax.Array:
    """[slots] float32: where each slot's cell ends on the right, ascending within a codebook; its last is infinite.

    flat: whether all values of a codebook have one price.
    """
    other = following(levels)
    from_, to = each(threshold[0], slots), -each(threshold[1], slots)
    middle = _middles(levels, price)
    border = jnp.where(other > 0, jnp.maximum(middle, from_), middle)
    border = jnp.where(levels < 0, jnp.minimum(middle, to), border)
    border = jnp.where((levels == 0) & (other > 0), from_, border)
    border = jnp.where((levels < 0) & (other == 0), to, border)
    border = jnp.where(is_last(slots), jnp.inf, border)
    if flat:
        return border
    # A value so dear that its neighbours are better everywhere has an empty cell.
    return highest_so_far(border, slots)


def cells(border: jax.Array, levels: jax.Array, tails: Tails, slots: tuple[int, ...]) -> Cells:
    """Of every class. border: [classes, slots]."""

    def of_class(
        border: jax.Array, mean: jax.Array, counts: jax.Array, total: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        side = (levels < 0).astype(jnp.int32)  # the border of the last negative level may be zero
        place = edge_index(jnp.abs(border), side, mean)

        def between(tail: jax.Array) -> jax.Array:
            right = tail.at[side, place].get(mode="promise_in_bounds")
            left = jnp.where(is_first(slots), 0, preceding(right))
            inside = jnp.where(levels > 0, left - right, right - left)
            return jnp.where(levels == 0, 0, inside)

        return between(counts), between(total)

    return Cells(*jax.vmap(of_class)(border, tails.mean, tails.counts, tails.total))


def borders_of(
    levels: jax.Array, price: jax.Array, leaf: Leaf, slots: tuple[int, ...], *, flat: bool
) -> jax.Array:
    """The borders of every class: [classes, slots]. price: [slots] float32, in the sketch's unit^2; flat: see `borders`."""
    relative = price[None, :] / leaf.cost[:, None]
    threshold = jax.vmap(lambda price: thresholds(levels, price, slots))(relative)
    if leaf.whole is not None:
        of_groups = _thresholds_of_groups(levels, relative, leaf, slots, flat=flat)
        threshold = jnp.where(leaf.whole, of_groups, threshold)
    return _borders_by_class(levels, relative, threshold, slots, flat=flat)


def _thresholds_of_groups(
    levels: jax.Array, relative: jax.Array, leaf: Leaf, slots: tuple[int, ...], *, flat: bool
) -> jax.Array:
    """0 for a class that gains more than it costs, else infinite: [classes, 2, codebooks]."""
    nothing = jnp.zeros((len(relative), 2, len(slots)), jnp.float32)
    border = _borders_by_class(levels, relative, nothing, slots, flat=flat)
    mine = cells(border, levels, leaf.tails, slots)
    counts, size = mine.counts.astype(jnp.float32), jnp.abs(levels)[None, :]
    gain = size * (2 * mine.total - size * counts) - relative * counts
    pays = summed(gain, slots) > 0
    return jnp.broadcast_to(jnp.where(pays, 0, _NONE)[:, None, :], nothing.shape)


def _borders_by_class(
    levels: jax.Array,
    relative: jax.Array,
    threshold: jax.Array,
    slots: tuple[int, ...],
    *,
    flat: bool,
) -> jax.Array:
    return jax.vmap(lambda p, t: borders(levels, p, t, slots, flat=flat))(relative, threshold)


def centroids(levels: jax.Array, cells: Cells, leaf: Leaf, slots: tuple[int, ...]) -> jax.Array:
    """The values of least error for the cells: their means, or multiples of the best step.

    A value whose cell is empty stays, since a lower price may need it.
    """
    count = jnp.sum(cells.counts.astype(jnp.float32) * leaf.cost[:, None], axis=0)
    total = jnp.sum(cells.total * leaf.cost[:, None], axis=0)
    mean = total / jnp.where(count > 0, count, 1)
    free = jnp.where(count > 0, jnp.sign(levels) * mean, levels)
    if leaf.uniform is None:
        return free
    return jnp.where(leaf.uniform, _multiples(levels, count, total, slots), free)


def _multiples(
    levels: jax.Array, count: jax.Array, total: jax.Array, slots: tuple[int, ...]
) -> jax.Array:
    number = _numbers(levels, slots)
    above, below = (summed(x, slots) for x in (jnp.abs(number) * total, number**2 * count))
    reach = jnp.max(by_codebook(jnp.abs(levels), slots, 0), axis=-1)
    before = reach / (np.array(slots) // 2).astype(np.float32)
    step = jnp.where(below > 0, above / jnp.where(below > 0, below, 1), before)
    return each(step, slots) * number


def _numbers(levels: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """Which multiple of its step each slot is, counted from the zeros, of which a codebook may have several."""
    first = np.cumsum((0, *slots))[:-1]

    def so_far(mine: jax.Array) -> jax.Array:
        counts = jnp.cumsum(mine, dtype=jnp.int32)
        return counts - each(counts[first] - mine[first], slots)

    above, below = ((sign * levels > 0).astype(jnp.int32) for sign in (1, -1))
    outside = each(summed(below, slots), slots) - so_far(below) + 1
    number = jnp.where(levels > 0, so_far(above), jnp.where(levels < 0, -outside, 0))
    return number.astype(jnp.float32)


class Outcome(NamedTuple):
    """Attributes:
    counts: [slots] int32, the weights of each.
    gain: [codebooks] float32, by how much keeping them lowers the error, in the sketch's unit^2.
    """

    counts: jax.Array
    gain: jax.Array


def outcome(levels: jax.Array, cells: Cells, leaf: Leaf, slots: tuple[int, ...]) -> Outcome:
    size = jnp.abs(levels)[None, :]
    gain = size * (2 * cells.total - size * cells.counts.astype(jnp.float32))
    gain = jnp.sum(gain * leaf.cost[:, None], axis=0)
    return Outcome(jnp.sum(cells.counts, axis=0, dtype=jnp.int32), summed(gain, slots))


def slot_of_bin(levels: jax.Array, border: jax.Array, mean: jax.Array) -> jax.Array:
    """The slot that each bin's weights go to, by `bin_of`: [BINS + 1] int32. Of one codebook and one class.

    levels, border: [257]; mean: [2, SIDE].
    """
    below = levels < 0
    place = edge_index(jnp.abs(border), below.astype(jnp.int32), mean)

    # How many borders of a side's slots are at or below each of its bins.
    at = jnp.zeros((2, SIDE), jnp.int32).at[below.astype(jnp.int32), place].add(1, mode="drop")
    passed = jnp.cumsum(at, axis=1, dtype=jnp.int32)
    zero = jnp.sum(below, dtype=jnp.int32)
    # From zero outwards the slots count up on one side and down on the other.
    of_bins = zero + jnp.array([[1], [-1]], jnp.int32) * passed
    return jnp.append(of_bins.reshape(-1), zero)
