"""Codebooks when every nonzero has a price: Lloyd's algorithm with a dead zone, on a sketch's tail sums."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.sketch.logarithmic import SIDE, LogSketch, edge_index, edges
from jpq_jax.vocabulary import LEVELS, MAX_BITS

WIDTHS = np.arange(1, MAX_BITS + 1, dtype=np.int32)
ALL = tuple(2**b + 1 for b in range(1, MAX_BITS + 1))
ONE = (LEVELS,)
"""Slots of codebooks that are fitted side by side: one for each bit-width, or a single one of any.

A codebook's values stand in ascending order in consecutive slots, 0 among them, repeated in those not used.
"""

_NONE = np.float32(np.inf)  # a threshold that no weight reaches


class Tails(NamedTuple):
    """Of the weights of one leaf whose magnitude is in bin j or beyond, by class and sign; j = 0 .. SIDE.

    Attributes:
      counts: [classes, 2, SIDE + 1] int32, how many.
      total: [classes, 2, SIDE + 1] float32, sum of their magnitudes, in the sketch's unit.
      mean: [classes, 2, SIDE] float32, of the bins.
      spread: [2, SIDE + 1] float32, integral of the cube root of their density, by which values are placed first.
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
      whole: [] bool: a class is kept or pruned as a whole, since its weights are of groups that are. None if that is
        so of no leaf.
      uniform: [] bool: the values are whole multiples of a step. None if that is so of no leaf.
    """

    tails: Tails
    size: jax.Array
    cost: jax.Array
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


def tails_of(sketch: LogSketch) -> Tails:
    # Summed from the outside in: the few large weights must not drown in the sum of the many small ones.
    def from_outside(x: jax.Array) -> jax.Array:
        sums = jnp.cumsum(x[..., ::-1], axis=-1, dtype=x.dtype)[..., ::-1]
        return jnp.pad(sums, [(0, 0)] * (x.ndim - 1) + [(0, 1)])

    counts = sketch.counts.astype(jnp.float32)
    total = counts * sketch.mean
    of_all = jnp.sum(counts, axis=0)
    middle = jnp.where(
        of_all > 0, jnp.sum(total, axis=0) / jnp.maximum(of_all, 1), edges()[:-1][None]
    )
    # Of weights far apart, what counts is not how wide their bins are, but how far it is to the next.
    so_far = lax.cummax(jnp.where(of_all > 0, middle, 0), axis=1)
    gap = middle - jnp.pad(so_far[:, :-1], ((0, 0), (1, 0)))
    return Tails(
        counts=from_outside(sketch.counts),
        total=from_outside(total),
        mean=sketch.mean,
        spread=from_outside(jnp.cbrt(of_all * gap**2)),
        middle=middle,
    )


def _is_first(slots: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(sum(slots)), np.cumsum((0, *slots)))


def _is_last(slots: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(sum(slots)) + 1, np.cumsum(slots))


def parts(x: jax.Array, slots: tuple[int, ...]) -> list[jax.Array]:
    """By codebook."""
    return jnp.split(x, np.cumsum(slots)[:-1], axis=-1)


def each(x: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """From one number for each codebook to one for each slot."""
    return jnp.repeat(x, np.array(slots), axis=-1, total_repeat_length=sum(slots))


def _middles(levels: jax.Array, price: jax.Array) -> jax.Array:
    """[slots]: where a slot's value and the next one's cost the same, both being of one sign."""
    following = jnp.roll(levels, -1)
    apart = following - levels
    dearer = jnp.roll(price, -1) - price
    return (levels + following) / 2 + jnp.where(apart > 0, dearer / (2 * apart), 0)


def thresholds(levels: jax.Array, price: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """The magnitude from which on weights are kept, for both signs: [2, codebooks] float32, infinite if none is.

    Weight w > 0 is kept if w^2 >= (w - c)^2 + price, c > 0 being the level that is best for it. The gain of keeping
    it grows with w, so that one threshold tells; it is the lowest of those that lie in their own level's cell.
    price: [slots] float32, in the sketch's unit^2.
    """
    middle = _middles(levels, price)
    left = jnp.where(_is_first(slots), -jnp.inf, jnp.roll(middle, 1))
    right = jnp.where(_is_last(slots), jnp.inf, middle)

    def lowest(c: jax.Array, inner: jax.Array, outer: jax.Array) -> jax.Array:
        is_level = c > 0
        gains_from = c / 2 + price / (2 * jnp.where(is_level, c, 1))
        start = jnp.maximum(jnp.maximum(gains_from, inner), 0)
        start = jnp.where(is_level & (start <= outer), start, _NONE)
        return jnp.stack([jnp.min(part) for part in parts(start, slots)])

    return jnp.stack([lowest(levels, left, right), lowest(-levels, -right, -left)])


def borders(
    levels: jax.Array, price: jax.Array, threshold: jax.Array, slots: tuple[int, ...]
) -> jax.Array:
    """[slots] float32: where each slot's cell ends on the right, ascending within a codebook; its last is infinite."""
    following = jnp.roll(levels, -1)
    from_, to = each(threshold[0], slots), -each(threshold[1], slots)
    middle = _middles(levels, price)
    border = jnp.where(following > 0, jnp.maximum(middle, from_), middle)
    border = jnp.where(levels < 0, jnp.minimum(middle, to), border)
    border = jnp.where((levels == 0) & (following > 0), from_, border)
    border = jnp.where((levels < 0) & (following == 0), to, border)
    border = jnp.where(_is_last(slots), jnp.inf, border)
    # A value so dear that its neighbours are better everywhere has an empty cell.
    return jnp.concatenate([lax.cummax(part) for part in parts(border, slots)])


def cells(border: jax.Array, levels: jax.Array, tails: Tails, slots: tuple[int, ...]) -> Cells:
    """Of every class. border: [classes, slots]."""

    def of_class(
        border: jax.Array, mean: jax.Array, counts: jax.Array, total: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        side = (border < 0).astype(jnp.int32)
        magnitude = jnp.abs(border)
        place = jnp.where(side == 0, edge_index(magnitude, mean[0]), edge_index(magnitude, mean[1]))

        def between(tail: jax.Array) -> jax.Array:
            right = tail[side, place]
            left = jnp.where(_is_first(slots), 0, jnp.roll(right, 1))
            inside = jnp.where(levels > 0, left - right, right - left)
            return jnp.where(levels == 0, 0, inside)

        return between(counts), between(total)

    return Cells(*jax.vmap(of_class)(border, tails.mean, tails.counts, tails.total))


def borders_of(
    levels: jax.Array, price: jax.Array, leaf: Leaf, slots: tuple[int, ...]
) -> jax.Array:
    """The borders of every class: [classes, slots]. price: [slots] float32, in the sketch's unit^2."""
    relative = price[None, :] / leaf.cost[:, None]
    threshold = jax.vmap(lambda price: thresholds(levels, price, slots))(relative)
    if leaf.whole is not None:
        of_groups = _thresholds_of_groups(levels, relative, leaf, slots)
        threshold = jnp.where(leaf.whole, of_groups, threshold)
    return _borders_by_class(levels, relative, threshold, slots)


def _thresholds_of_groups(
    levels: jax.Array, relative: jax.Array, leaf: Leaf, slots: tuple[int, ...]
) -> jax.Array:
    """0 for a class that gains more than it costs, else infinite: [classes, 2, codebooks]."""
    nothing = jnp.zeros((len(relative), 2, len(slots)), jnp.float32)
    border = _borders_by_class(levels, relative, nothing, slots)
    mine = cells(border, levels, leaf.tails, slots)
    counts, size = mine.counts.astype(jnp.float32), jnp.abs(levels)[None, :]
    gain = size * (2 * mine.total - size * counts) - relative * counts
    pays = jnp.stack([jnp.sum(part, axis=-1) > 0 for part in parts(gain, slots)], axis=-1)
    return jnp.broadcast_to(jnp.where(pays, 0, _NONE)[:, None, :], nothing.shape)


def _borders_by_class(
    levels: jax.Array, relative: jax.Array, threshold: jax.Array, slots: tuple[int, ...]
) -> jax.Array:
    return jax.vmap(lambda p, t: borders(levels, p, t, slots))(relative, threshold)


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
    above, below = jnp.abs(number) * total, number**2 * count

    def step(above: jax.Array, below: jax.Array, level: jax.Array) -> jax.Array:
        squares, largest = jnp.sum(below), jnp.argmax(jnp.abs(level))
        before = jnp.abs(level[largest]) / (len(level) // 2)
        return jnp.where(squares > 0, jnp.sum(above) / jnp.where(squares > 0, squares, 1), before)

    columns = zip(*(parts(x, slots) for x in (above, below, levels)), strict=True)
    return each(jnp.stack([step(*column) for column in columns]), slots) * number


def _numbers(levels: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """Which multiple of its step each slot is, counted from the zeros, of which a codebook may have several."""

    def counted(level: jax.Array) -> jax.Array:
        above = jnp.cumsum(level > 0, dtype=jnp.int32)
        below = jnp.cumsum((level < 0)[::-1], dtype=jnp.int32)[::-1]
        return jnp.where(level > 0, above, jnp.where(level < 0, -below, 0))

    counts = [counted(level) for level in parts(levels, slots)]
    return jnp.concatenate(counts).astype(jnp.float32)


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
    return Outcome(
        jnp.sum(cells.counts, axis=0, dtype=jnp.int32),
        jnp.stack([jnp.sum(part) for part in parts(gain, slots)]),
    )


def starting_levels(leaf: Leaf, price: jax.Array, slots: tuple[int, ...] = ALL) -> jax.Array:
    """Values placed by the cube root of the density beyond sqrt(price), as is optimal for many levels (Panter-Dite).

    Of a uniform leaf the outermost of these only, and multiples of a step up to there.

    Args:
      leaf: what is to be fitted.
      price: [codebooks] float32.
      slots: of the codebooks.
    """
    tails = leaf.tails
    count = jnp.array(slots, jnp.int32) - 1
    rank = jnp.concatenate([jnp.arange(size, dtype=jnp.int32) for size in slots])
    at = edge_index(jnp.sqrt(price), edges()[:-1])
    positive, negative = (tails.spread[side][at] for side in (0, 1))
    whole = positive + negative
    share = negative / jnp.where(whole > 0, whole, 1)
    below = jnp.round(count.astype(jnp.float32) * share).astype(jnp.int32)
    position = rank - each(below, slots)  # of the slot, from the zero

    def outermost(side: int, number: jax.Array, of: jax.Array, spread: jax.Array) -> jax.Array:
        share = (number.astype(jnp.float32) - 0.5) / jnp.maximum(of, 1).astype(jnp.float32)
        beyond = (1 - share) * each(spread, slots)
        # The last bin beyond which there is that much.
        place = SIDE - jnp.searchsorted(tails.spread[side][::-1], beyond)
        return tails.middle[side][jnp.clip(place, 0, SIDE - 1)]

    above = each(count - below, slots)
    up = outermost(0, position, above, positive)
    down = -outermost(1, -position, each(below, slots), negative)
    free = jnp.where(position > 0, up, jnp.where(position < 0, down, 0))
    if leaf.uniform is None:
        return free
    reach = jnp.stack([jnp.max(jnp.abs(part)) for part in parts(free, slots)])
    step = each(reach / (count // 2).astype(jnp.float32), slots)
    number = (rank - each(count // 2, slots)).astype(jnp.float32)
    return jnp.where(leaf.uniform, step * number, free)


def slot_of_bin(levels: jax.Array, border: jax.Array, mean: jax.Array) -> jax.Array:
    """The slot that each bin's weights go to, by `bin_of`: [BINS + 1] int32. Of one codebook and one class.

    levels, border: [257]; mean: [2, SIDE].
    """
    positive = jnp.searchsorted(border[:-1], mean[0], side="right", method="scan")
    negative = jnp.searchsorted(border[:-1], -mean[1], side="left", method="scan")
    zero = jnp.argmax(levels == 0)[None]
    return jnp.concatenate([part.astype(jnp.int32) for part in (positive, negative, zero)])
