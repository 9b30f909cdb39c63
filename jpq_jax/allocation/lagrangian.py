"""Support, bit-widths and codebooks of all leaves together, under one budget, by one multiplier.

    min_Q sum_i h_i (w_i - q_i)^2   subject to   rate(Q) <= S

For a multiplier m, a nonzero that takes r bits has the price m r; each leaf takes the bit-width of least error plus
price. The leaves' problems are then apart from each other, and m alone is to be found. Everything here works on
sketches and is traced into the caller's program.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.allocation.rates import Rate
from jpq_jax.sketch.priced import (
    ALL,
    ONE,
    WIDTHS,
    Cells,
    Leaf,
    borders_of,
    cells,
    centroids,
    each,
    lacks_levels,
    outcome,
    owner_of,
    starting_levels,
    summed,
)
from jpq_jax.vocabulary import LEVELS

_MOST = np.float32(1e30)  # a price at which nothing is kept, and that can still be multiplied by 0
_MULTIPLIER = np.float32(2.0**127)  # at which that price is reached
_HALVINGS = 24  # of the multiplier's range in octaves
_LOWEST = -64.0  # octaves below the largest weight's square
_ITERATIONS = 12  # of Lloyd's algorithm at a multiplier, and again at the end
_FOLLOWING = 2  # when a fit is followed
_COARSE = 10  # halvings whose codebooks begin anew
_GLANCE = 4  # iterations for them
_ROUNDS = 4  # of Lloyd's algorithm and of the multiplier, at the end


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


class Fit(NamedTuple):
    """One codebook for each leaf, and what is kept of the leaves.

    Attributes:
      levels: [leaves, 257] float32, ascending, in the leaves' own units; 0 is among them.
      bits: [leaves] int32 in 1..8.
      slot_bits: [leaves, 257] float32, what a weight of each level takes, a pruned one being free.
      spent: how far the budget goes.
    """

    levels: jax.Array
    bits: jax.Array
    slot_bits: jax.Array
    spent: Spent


class Start(NamedTuple):
    """Where a search goes on from.

    Attributes:
      multiplier: [] float32.
      levels: [leaves, slots of ALL] float32, a codebook for every bit-width, in the leaves' own units.
      slot_bits: [leaves, slots of ALL] float32.
      bits: [leaves] int32, those in force.
      is_cold: [] bool: there is nothing to go on from.
    """

    multiplier: jax.Array
    levels: jax.Array
    slot_bits: jax.Array
    bits: jax.Array
    is_cold: jax.Array


class Candidates(NamedTuple):
    """Attributes:
    levels: [leaves, slots of ALL] float32.
    slot_bits: [leaves, slots of ALL] float32.
    bits: [leaves] int32, those to take.
    """

    levels: jax.Array
    slot_bits: jax.Array
    bits: jax.Array


def cold_start(leaves: int) -> Start:
    empty = jnp.zeros((leaves, sum(ALL)), jnp.float32)
    return Start(
        jnp.zeros([], jnp.float32), empty, empty, jnp.ones(leaves, jnp.int32), jnp.ones([], bool)
    )


def allocate(problem: Problem, start: Start) -> tuple[Fit, Candidates]:
    """The fit of least error that the search finds, never above the limit; and what to go on from.

    From a cold start the multiplier is bisected, with new codebooks at each. Otherwise it and the codebooks are
    those of weights and a limit a little different, and a few iterations follow; the bit-widths in force stay if
    those that the multiplier asks for do no better at the limit.
    """
    sides = _search(problem, start)
    rounds = jnp.where(start.is_cold, _ROUNDS, 1)

    def settled(side: Candidates) -> tuple[Fit, jax.Array]:
        fit = _settle(problem, side, rounds)
        return fit, gain_of(problem, fit)

    fits, gains = jax.vmap(settled)(sides)
    best = jnp.argmax(gains)  # of equals the first
    return jax.tree.map(lambda of_both: of_both[best], (fits, sides))


def own(multiplier: jax.Array, scale: jax.Array) -> jax.Array:
    """The multiplier in the leaves' units: [leaves]."""
    return jnp.minimum(multiplier / scale, _MOST)


class Book(NamedTuple):
    """Codebooks of one leaf.

    Attributes:
      levels: [slots] float32.
      slot_bits: [slots] float32, what a weight of each level takes, a pruned one being free.
    """

    levels: jax.Array
    slot_bits: jax.Array


def _lloyd(
    state: Book,
    multiplier: jax.Array,  # in the leaf's unit
    bits: jax.Array,
    leaf: Leaf,
    rate: Rate,
    slots: tuple[int, ...],
    iterations: int | jax.Array,
) -> Book:
    """Iterations of one leaf's codebooks; each lowers error plus price, or leaves it as it is, at the rate's prices."""

    def step(_: int, state: Book) -> Book:
        found = _cells_at(state, multiplier, leaf, rate, slots)
        levels = centroids(state.levels, found, leaf, slots)
        counts = jnp.sum(found.counts, axis=0, dtype=jnp.int32)
        improved = Book(levels, _slot_bits(levels, counts, bits, leaf, rate, slots))
        return improved if keeps_order(rate, leaf) else ascending(improved, slots)

    return lax.fori_loop(0, iterations, step, state)


def keeps_order(rate: Rate, leaf: Leaf) -> bool:
    """Whether the means of neighbours cannot change places: all values have one price, and all weights one cost."""
    return rate.flat and leaf.cost.shape[-1] == 1


def ascending(book: Book, slots: tuple[int, ...]) -> Book:
    """Each codebook in order again. book: [slots]."""
    owner = jnp.asarray(owner_of(slots), jnp.int32)
    return Book(*lax.sort((owner, *book), num_keys=2)[1:])


def _slot_bits(
    levels: jax.Array,
    counts: jax.Array,
    bits: jax.Array,
    leaf: Leaf,
    rate: Rate,
    slots: tuple[int, ...],
) -> jax.Array:
    return jnp.where(levels == 0, 0, rate.price(counts, bits, leaf.size, slots))


def borders_at(
    book: Book, multiplier: jax.Array, leaf: Leaf, rate: Rate, slots: tuple[int, ...]
) -> jax.Array:
    """[classes, slots], of one leaf, at a multiplier in its own unit."""
    price = jnp.minimum(multiplier * book.slot_bits, _MOST)
    return borders_of(book.levels, price, leaf, slots, flat=keeps_order(rate, leaf))


def _cells_at(
    book: Book, multiplier: jax.Array, leaf: Leaf, rate: Rate, slots: tuple[int, ...]
) -> Cells:
    border = borders_at(book, multiplier, leaf, rate, slots)
    return cells(border, book.levels, leaf.tails, slots)


def total(bits: jax.Array) -> jax.Array:
    """Of all leaves, counted as they are."""
    return jnp.sum(bits, dtype=bits.dtype)


def _search(problem: Problem, start: Start) -> Candidates:
    """Codebooks just within the budget, and just beyond it. All fields: [2, ...].

    The first halvings, which are far apart, begin anew with a few iterations of Lloyd's algorithm; one takes as many
    as it needs; and those after it, each a step half as wide, go on from the one before.
    """
    cold, rate = start.is_cold, problem.rate
    widths = jnp.asarray(WIDTHS)

    def begun(book: Book, leaf: Leaf, multiplier: jax.Array) -> Book:
        """All codebooks from a cold start, else those that Lloyd's algorithm cannot bring back by itself."""
        price = jnp.minimum(multiplier * widths.astype(jnp.float32), _MOST)
        levels = starting_levels(leaf, price)
        fresh = Book(levels, jnp.where(levels == 0, 0, each(widths.astype(jnp.float32), ALL)))
        kept = summed(_cells_at(book, multiplier, leaf, rate, ALL).counts, ALL)
        lost = lacks_levels(book.levels, levels, ALL) | (jnp.sum(kept, axis=0) == 0)
        is_new = cold | each(lost, ALL)
        return Book(*(jnp.where(is_new, *pair) for pair in zip(fresh, book, strict=True)))

    def fit(i: jax.Array, book: Book, leaf: Leaf, multiplier: jax.Array) -> tuple:
        begins = ~cold | (i <= _COARSE)
        book = lax.cond(begins, begun, lambda book, *_: book, book, leaf, multiplier)
        few = jnp.where(i < _COARSE, _GLANCE, jnp.where(i == _COARSE, _ITERATIONS, _FOLLOWING))
        iterations = jnp.where(cold, few, _FOLLOWING)
        book = _lloyd(book, multiplier, widths, leaf, rate, ALL, iterations)
        mine = _cells_at(book, multiplier, leaf, rate, ALL)
        counts, gain = outcome(book.levels, mine, leaf, ALL)
        bits = rate.of_leaf(counts, widths, leaf.size, ALL)
        best = jnp.argmin(jnp.minimum(multiplier * bits.astype(jnp.float32), _MOST) - gain)
        return book, (best + 1).astype(jnp.int32), bits[best]

    def evaluate(i: jax.Array, state: tuple) -> tuple:
        low, high, before, sides = state
        middle = (low + high) / 2
        multiplier = own(jnp.where(cold, jnp.exp2(middle), start.multiplier), problem.scale)
        of_leaf = functools.partial(fit, i)
        after, bits, taken = jax.vmap(of_leaf)(before, problem.leaves, multiplier)
        fits = total(taken) <= problem.limit
        # A search that goes on has but one multiplier, and compares its bit-widths with those in force.
        is_new = jnp.where(cold, jnp.stack([fits, ~fits]), True)
        levels, slot_bits = (jnp.stack([part, part]) for part in after)
        both = jnp.stack([jnp.where(cold, bits, start.bits), bits])
        found = Candidates(levels, slot_bits, both)
        pick = jax.vmap(jnp.where)
        sides = jax.tree.map(functools.partial(pick, is_new), found, sides)
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high), after, sides

    nothing = jnp.zeros((2, *start.levels.shape), jnp.float32)
    empty = Candidates(nothing, nothing, jnp.ones((2, *start.bits.shape), jnp.int32))
    evaluations = jnp.where(cold, _HALVINGS, 1)
    before = Book(start.levels, start.slot_bits)
    state = (jnp.float32(_LOWEST), jnp.float32(2.0), before, empty)
    return lax.fori_loop(0, evaluations, evaluate, state)[3]


def _settle(problem: Problem, side: Candidates, rounds: jax.Array) -> Fit:
    """At fixed bit-widths: values and multiplier in turn, the multiplier so that the budget is spent."""
    bits = side.bits

    def once(i: jax.Array, state: tuple[Book, Spent]) -> tuple[Book, Spent]:
        book, _ = state
        spent = spend(problem, book, bits)
        multiplier = own(spent.multiplier, problem.scale)
        iterations = jnp.where(i < rounds, _ITERATIONS // _ROUNDS, 0)  # the last round only spends

        def improved(book: Book, multiplier: jax.Array, bits: jax.Array, leaf: Leaf) -> Book:
            return _lloyd(book, multiplier, bits[None], leaf, problem.rate, ONE, iterations)

        return jax.vmap(improved)(book, multiplier, bits, problem.leaves), spent

    book = Book(
        *(jax.vmap(_codebook)(part, side.levels, bits) for part in (side.levels, side.slot_bits))
    )
    start = book, _nothing(book, problem)
    book, spent = lax.fori_loop(0, rounds + 1, once, start)
    return Fit(book.levels, bits, book.slot_bits, spent)


def _nothing(book: Book, problem: Problem) -> Spent:
    """Borders between which every weight lies. book: [leaves, 257]."""
    outside = jnp.where(book.levels < 0, -jnp.inf, jnp.inf).astype(jnp.float32)[:, None, :]
    border = jnp.broadcast_to(outside, (*problem.leaves.cost.shape, outside.shape[-1]))
    return Spent(jnp.asarray(_MULTIPLIER), border, border)


def _codebook(slots: jax.Array, levels: jax.Array, bits: jax.Array) -> jax.Array:
    """That of one bit-width, filled up with zero levels. slots, levels: [slots of ALL]."""
    start = 2**bits - 2 + (bits - 1)
    slot = jnp.arange(LEVELS, dtype=jnp.int32)
    mine = slot <= 2**bits
    place = jnp.where(mine, start + slot, 0)
    order = jnp.argsort(jnp.where(mine, levels[place], 0))  # stable
    return jnp.where(mine, slots[place], 0)[order]


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
        holds = total(taken(problem, book, bits, border)) <= problem.limit
        return (
            jnp.where(holds, low, middle),
            jnp.where(holds, middle, high),
            jnp.where(holds, border, at),
            jnp.where(holds, below, border),
        )

    # The bit patterns of non-negative floats are in the order of their values.
    most = lax.bitcast_convert_type(_MULTIPLIER, jnp.int32)
    start = (jnp.int32(-1), most, *_nothing(book, problem)[1:])
    low, high, at, below = lax.fori_loop(0, 31, halve, start)
    multiplier = lax.bitcast_convert_type(high, jnp.float32)
    return Spent(multiplier, at, jnp.where(low < 0, at, below))


def taken(problem: Problem, book: Book, bits: jax.Array, border: jax.Array) -> jax.Array:
    """[leaves], bits at these borders. book: [leaves, 257]."""

    def of_leaf(levels: jax.Array, border: jax.Array, bits: jax.Array, leaf: Leaf) -> jax.Array:
        mine = cells(border, levels, leaf.tails, ONE)
        counts = jnp.sum(mine.counts, axis=0, dtype=jnp.int32)
        return problem.rate.of_leaf(counts, bits[None], leaf.size, ONE)[0]

    return jax.vmap(of_leaf)(book.levels, border, bits, problem.leaves)


def spare_of(
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


class Waiting(NamedTuple):
    """The weights between the multiplier and the one just below it, each of [leaves].

    Attributes:
      number: int32, how many there are.
      paid: int32, how many of them the rest of the budget pays for.
    """

    number: jax.Array
    paid: jax.Array


def waiting_of(problem: Problem, fit: Fit, together: jax.Array) -> Waiting:
    """together: see `spare_of`."""
    none = jnp.zeros_like(fit.bits)
    if not jnp.issubdtype(problem.limit.dtype, jnp.integer):  # the price of one more is not known
        return Waiting(none, none)
    book, spent = Book(fit.levels, fit.slot_bits), fit.spent
    kept, more = (taken(problem, book, fit.bits, border) for border in (spent.at, spent.below))
    number = (more - kept).astype(jnp.int32) // fit.bits
    return Waiting(number, spare_of(number, fit.bits, together, problem.limit - total(kept)))


def gain_of(problem: Problem, fit: Fit) -> jax.Array:
    """By how much the error falls from that of zeros, with what the rest of the budget pays for, which may be most where weights are
    equal: [] float32.
    """

    def of_leaf(levels: jax.Array, border: jax.Array, leaf: Leaf) -> jax.Array:
        return outcome(levels, cells(border, levels, leaf.tails, ONE), leaf, ONE).gain[0]

    at, below = (
        jax.vmap(of_leaf)(fit.levels, border, problem.leaves)
        for border in (fit.spent.at, fit.spent.below)
    )
    waiting = waiting_of(problem, fit, jnp.ones_like(fit.bits))
    share = waiting.paid.astype(jnp.float32) / jnp.maximum(waiting.number, 1).astype(jnp.float32)
    return jnp.sum((at + share * (below - at)) * problem.scale)
