"""How far a budget goes at codebooks that are given: the multiplier at which it holds, and what the rest of it pays for.

Everything here works on sketches and is traced into the caller's program.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.allocation.rates import Rate
from jpq_jax.sketch.priced import Cells, Leaf, borders_of, cells, outcome
from jpq_jax.sketch.slots import ONE

MOST = np.float32(1e30)  # a price at which nothing is kept, and that can still be multiplied by 0
_MULTIPLIER = np.float32(2.0**127)  # at which that price is reached


class Problem(NamedTuple):
    """Attributes:
    leaves: stacked: [leaves, ...].
    scale: [leaves] float32, what an error of 1 in a leaf's own unit weighs, by that of the heaviest leaf.
    limit: [] uint32 or float32, as the rate counts.
    rate: static.
    """

    leaves: Leaf
    scale: jax.Array
    limit: jax.Array
    rate: Rate


class Spent(NamedTuple):
    """The borders themselves are kept: computed anew, in another place, they might round otherwise.

    Attributes:
      multiplier: [] float32, the smallest at which the budget holds.
      at: [leaves, classes, 257] float32, the borders there, see `sketch.priced.borders`.
      below: the same at the next multiplier below it, at which the budget does not hold; those of `at` where all that
        helps is kept.
    """

    multiplier: jax.Array
    at: jax.Array
    below: jax.Array


class Book(NamedTuple):
    """Codebooks of one leaf.

    Attributes:
      levels: [slots] float32.
      slot_bits: [slots] float32, what a weight of each level takes, a pruned one being free.
    """

    levels: jax.Array
    slot_bits: jax.Array


class Kept(NamedTuple):
    """What is kept at some borders.

    Attributes:
      cells: what each slot is given, [leaves, classes, 257].
      bits: [leaves], that it takes, as the rate counts.
      gain: [leaves] float32, by how much it lowers the error from that of zeros, relative to the heaviest leaf's unit.
    """

    cells: Cells
    bits: jax.Array
    gain: jax.Array


class Remainder(NamedTuple):
    """The weights between the multiplier and the one just below it, for which there is some budget left, but not for all.

    Attributes:
      paid: [leaves] int32, how many of them it pays for.
      gain: [] float32, by how much the error falls from that of zeros, with these.
    """

    paid: jax.Array
    gain: jax.Array


class Fit(NamedTuple):
    """One codebook for each leaf, and what is kept of the leaves.

    Attributes:
      levels: [leaves, 257] float32, ascending, in the leaves' own units; 0 is among them.
      bits: [leaves] int32 in 1..8.
      slot_bits: [leaves, 257] float32, what a weight of each level takes, a pruned one being free.
      spent: how far the budget goes.
      at: what is kept there.
      below: what would be kept just below that.
      remainder: what is left of the budget then.
    """

    levels: jax.Array
    bits: jax.Array
    slot_bits: jax.Array
    spent: Spent
    at: Kept
    below: Kept
    remainder: Remainder


def own(multiplier: jax.Array, scale: jax.Array) -> jax.Array:
    """The multiplier in the leaves' units: [leaves]."""
    return jnp.minimum(multiplier / scale, MOST)


def keeps_order(rate: Rate, leaf: Leaf) -> bool:
    """Whether the means of neighbours cannot change places: all values have one price, and all weights one cost."""
    return rate.flat and leaf.cost.shape[-1] == 1


def borders_at(
    book: Book, multiplier: jax.Array, leaf: Leaf, rate: Rate, slots: tuple[int, ...]
) -> jax.Array:
    """[classes, slots], of one leaf, at a multiplier in its own unit."""
    price = jnp.minimum(multiplier * book.slot_bits, MOST)
    return borders_of(book.levels, price, leaf, slots, flat=keeps_order(rate, leaf))


def cells_at(
    book: Book, multiplier: jax.Array, leaf: Leaf, rate: Rate, slots: tuple[int, ...]
) -> Cells:
    border = borders_at(book, multiplier, leaf, rate, slots)
    return cells(border, book.levels, leaf.tails, slots)


def total(bits: jax.Array) -> jax.Array:
    """Of all leaves, counted as they are."""
    return jnp.sum(bits, dtype=bits.dtype)


def _kept_at(problem: Problem, book: Book, bits: jax.Array, border: jax.Array) -> Kept:
    """book: [leaves, 257]; border: [leaves, classes, 257]."""

    def of_leaf(levels: jax.Array, border: jax.Array, bits: jax.Array, leaf: Leaf) -> Kept:
        found = cells(border, levels, leaf.tails, ONE)
        counts, gain = outcome(levels, found, leaf, ONE)
        taken = problem.rate.of_leaf(counts, bits[None], leaf.size, ONE)
        return Kept(found, taken[0], gain[0])

    kept = jax.vmap(of_leaf)(book.levels, border, bits, problem.leaves)
    return kept._replace(gain=kept.gain * problem.scale)


def nothing_spent(book: Book, problem: Problem) -> Spent:
    """Borders between which every weight lies. book: [leaves, 257]."""
    outside = jnp.where(book.levels < 0, -jnp.inf, jnp.inf).astype(jnp.float32)[:, None, :]
    border = jnp.broadcast_to(outside, (*problem.leaves.cost.shape, outside.shape[-1]))
    return Spent(jnp.asarray(_MULTIPLIER), border, border)


@jax.jit
def spend(problem: Problem, book: Book, bits: jax.Array) -> Spent:
    """Bisects the multiplier. book: [leaves, 257]."""

    def split(multiplier: jax.Array) -> jax.Array:
        multiplier = own(lax.bitcast_convert_type(multiplier, jnp.float32), problem.scale)

        def of_leaf(book: Book, multiplier: jax.Array, leaf: Leaf) -> jax.Array:
            return borders_at(book, multiplier, leaf, problem.rate, ONE)

        return lax.optimization_barrier(jax.vmap(of_leaf)(book, multiplier, problem.leaves))

    def halve(_: int, state: tuple) -> tuple:
        low, high, at, below = state
        middle = low + (high - low + 1) // 2  # never low, which may be no number
        border = split(middle)
        holds = total(_kept_at(problem, book, bits, border).bits) <= problem.limit
        return (
            jnp.where(holds, low, middle),
            jnp.where(holds, middle, high),
            jnp.where(holds, border, at),
            jnp.where(holds, below, border),
        )

    # The bit patterns of non-negative floats are in the order of their values.
    most = lax.bitcast_convert_type(_MULTIPLIER, jnp.int32)
    start = (jnp.int32(-1), most, *nothing_spent(book, problem)[1:])
    low, high, at, below = lax.fori_loop(0, 31, halve, start)
    multiplier = lax.bitcast_convert_type(high, jnp.float32)
    return Spent(multiplier, at, jnp.where(low < 0, at, below))


@jax.jit
def fit_of(problem: Problem, book: Book, bits: jax.Array, spent: Spent) -> Fit:
    """The budget being spent on these codebooks, see `spend`. book: [leaves, 257]."""

    def kept(border: jax.Array) -> Kept:
        return _kept_at(problem, book, bits, border)

    both = jax.vmap(kept)(jnp.stack([spent.at, spent.below]))
    at, below = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
    rest = _remainder(problem, bits, at, below)
    return Fit(book.levels, bits, book.slot_bits, spent, at, below, rest)


def _spare_of(
    waiting: jax.Array, bits: jax.Array, together: jax.Array, left: jax.Array
) -> jax.Array:
    """How many of each leaf's waiting weights the rest of the budget pays for, the first leaf's first. [leaves]

    together: [leaves], how many can only be had as one.
    """

    def take(left: jax.Array, leaf: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        waiting, bits, together = leaf
        afforded = (left // bits.astype(jnp.uint32)).astype(jnp.int32)
        taken = jnp.minimum(waiting, afforded // together * together)
        return left - (taken * bits).astype(jnp.uint32), taken

    return lax.scan(take, left, (waiting, bits, together))[1]


def _remainder(problem: Problem, bits: jax.Array, at: Kept, below: Kept) -> Remainder:
    """Where weights are equal, it may be most of the budget. It is nothing where the price of one more weight is not known."""
    if not jnp.issubdtype(problem.limit.dtype, jnp.integer):
        return Remainder(jnp.zeros_like(bits), jnp.sum(at.gain))
    waiting = (below.bits - at.bits).astype(jnp.int32) // bits
    left = problem.limit - total(at.bits)
    paid = _spare_of(waiting, bits, problem.leaves.together, left)
    share = paid.astype(jnp.float32) / jnp.maximum(waiting, 1).astype(jnp.float32)
    return Remainder(paid, jnp.sum(at.gain + share * (below.gain - at.gain)))
