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


class Tails(NamedTuple):
    """Of the weights whose magnitude is in bin j or beyond, for both signs; j = 0 .. SIDE.

    Attributes:
      counts: [2, SIDE + 1] int32, how many.
      total: [2, SIDE + 1] float32, sum of their magnitudes, in the sketch's unit.
      spread: [2, SIDE + 1] float32, integral of the cube root of their density, by which values are placed first.
      mean: [2, SIDE] float32, of the bins.
    """

    counts: jax.Array
    total: jax.Array
    spread: jax.Array
    mean: jax.Array


class Cells(NamedTuple):
    """What is nearest to each slot's value, the price considered; zero slots are given nothing.

    Attributes:
      counts: [slots] int32.
      total: [slots] float32, sum of magnitudes.
    """

    counts: jax.Array
    total: jax.Array


def tails_of(sketch: LogSketch) -> Tails:
    # Summed from the outside in: the few large weights must not drown in the sum of the many small ones.
    def from_outside(x: jax.Array) -> jax.Array:
        sums = jnp.cumsum(x[:, ::-1], axis=1, dtype=x.dtype)[:, ::-1]
        return jnp.pad(sums, ((0, 0), (0, 1)))

    counts = sketch.counts.astype(jnp.float32)
    # Of weights far apart, what counts is not how wide their bins are, but how far it is to the next.
    so_far = lax.cummax(jnp.where(sketch.counts > 0, sketch.mean, 0), axis=1)
    gap = sketch.mean - jnp.pad(so_far[:, :-1], ((0, 0), (1, 0)))
    return Tails(
        counts=from_outside(sketch.counts),
        total=from_outside(counts * sketch.mean),
        spread=from_outside(jnp.cbrt(counts * gap**2)),
        mean=sketch.mean,
    )


def _is_first(slots: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(sum(slots)), np.cumsum((0, *slots)))


def _is_last(slots: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(sum(slots)) + 1, np.cumsum(slots))


def _parts(x: jax.Array, slots: tuple[int, ...]) -> list[jax.Array]:
    return jnp.split(x, np.cumsum(slots)[:-1])


def _each(x: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """From one number for each codebook to one for each slot."""
    return jnp.repeat(x, np.array(slots), total_repeat_length=sum(slots))


def thresholds(levels: jax.Array, price: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """The magnitude from which on weights are kept, for both signs: [2, codebooks] float32, infinite if none is.

    Weight w > 0 is kept if w^2 >= (w - c)^2 + price, c > 0 being the level nearest to it. The gain of keeping it
    grows with w, so that one threshold tells; it is the lowest of those that lie in their own level's cell.
    price: [codebooks] float32, in the sketch's unit^2.
    """
    price = _each(price, slots)
    middle = (levels + jnp.roll(levels, -1)) / 2
    left = jnp.where(_is_first(slots), -jnp.inf, jnp.roll(middle, 1))
    right = jnp.where(_is_last(slots), jnp.inf, middle)

    def lowest(c: jax.Array, inner: jax.Array, outer: jax.Array) -> jax.Array:
        is_level = c > 0
        gains_from = c / 2 + price / (2 * jnp.where(is_level, c, 1))
        start = jnp.maximum(gains_from, inner)
        start = jnp.where(is_level & (start <= outer), start, jnp.inf)
        return jnp.stack([jnp.min(part) for part in _parts(start, slots)])

    return jnp.stack([lowest(levels, left, right), lowest(-levels, -right, -left)])


def borders(levels: jax.Array, threshold: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """[slots] float32: where each slot's cell ends on the right, ascending within a codebook; its last is infinite."""
    following = jnp.roll(levels, -1)
    middle = (levels + following) / 2
    from_, to = _each(threshold[0], slots), -_each(threshold[1], slots)
    middle = jnp.where(following > 0, jnp.maximum(middle, from_), middle)
    middle = jnp.where(levels < 0, jnp.minimum(middle, to), middle)
    return jnp.where(_is_last(slots), jnp.inf, middle)


def cells(levels: jax.Array, threshold: jax.Array, tails: Tails, slots: tuple[int, ...]) -> Cells:
    border = borders(levels, threshold, slots)
    side = (border < 0).astype(jnp.int32)
    magnitude = jnp.abs(border)
    place = jnp.where(
        side == 0, edge_index(magnitude, tails.mean[0]), edge_index(magnitude, tails.mean[1])
    )

    def between(tail: jax.Array) -> jax.Array:
        right = tail[side, place]
        left = jnp.where(_is_first(slots), 0, jnp.roll(right, 1))
        inside = jnp.where(levels > 0, left - right, right - left)
        return jnp.where(levels == 0, 0, inside)

    return Cells(between(tails.counts), between(tails.total))


def centroids(levels: jax.Array, cells: Cells) -> jax.Array:
    """The mean of each cell; a value whose cell is empty stays, since a lower price may need it."""
    mean = cells.total / jnp.maximum(cells.counts, 1).astype(jnp.float32)
    return jnp.where(cells.counts > 0, jnp.sign(levels) * mean, levels)


class Outcome(NamedTuple):
    """Attributes:
    counts: [codebooks] int32, the weights that are kept.
    gain: [codebooks] float32, by how much keeping them lowers the squared error, in the sketch's unit^2.
    """

    counts: jax.Array
    gain: jax.Array


def outcome(levels: jax.Array, cells: Cells, slots: tuple[int, ...]) -> Outcome:
    size = jnp.abs(levels)
    gain = size * (2 * cells.total - size * cells.counts.astype(jnp.float32))
    return Outcome(
        jnp.stack([jnp.sum(part, dtype=jnp.int32) for part in _parts(cells.counts, slots)]),
        jnp.stack([jnp.sum(part) for part in _parts(gain, slots)]),
    )


def starting_levels(tails: Tails, price: jax.Array, slots: tuple[int, ...] = ALL) -> jax.Array:
    """Values placed by the cube root of the density beyond sqrt(price), as is optimal for many levels (Panter-Dite).

    price: [codebooks] float32.
    """
    count = jnp.array(slots, jnp.int32) - 1
    rank = jnp.concatenate([jnp.arange(size, dtype=jnp.int32) for size in slots])
    at = edge_index(jnp.sqrt(price), edges()[:-1])
    positive, negative = (tails.spread[side][at] for side in (0, 1))
    whole = positive + negative
    share = negative / jnp.where(whole > 0, whole, 1)
    below = jnp.round(count.astype(jnp.float32) * share).astype(jnp.int32)
    position = rank - _each(below, slots)  # of the slot, from the zero

    def outermost(side: int, number: jax.Array, of: jax.Array, spread: jax.Array) -> jax.Array:
        share = (number.astype(jnp.float32) - 0.5) / jnp.maximum(of, 1).astype(jnp.float32)
        beyond = (1 - share) * _each(spread, slots)
        # The last bin beyond which there is that much.
        place = SIDE - jnp.searchsorted(tails.spread[side][::-1], beyond)
        return tails.mean[side][jnp.clip(place, 0, SIDE - 1)]

    above = _each(count - below, slots)
    up = outermost(0, position, above, positive)
    down = -outermost(1, -position, _each(below, slots), negative)
    return jnp.where(position > 0, up, jnp.where(position < 0, down, 0))


def slot_of_bin(levels: jax.Array, threshold: jax.Array, mean: jax.Array) -> jax.Array:
    """The slot that each bin's weights go to, by `bin_of`: [BINS + 1] int32. levels: [257] of one codebook."""
    border = borders(levels, threshold, ONE)[:-1]
    positive = jnp.searchsorted(border, mean[0], side="right", method="scan")
    negative = jnp.searchsorted(border, -mean[1], side="left", method="scan")
    zero = jnp.argmax(levels == 0)[None]
    return jnp.concatenate([part.astype(jnp.int32) for part in (positive, negative, zero)])
