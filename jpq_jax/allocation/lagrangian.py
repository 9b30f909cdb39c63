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
from jax import lax

from jpq_jax.allocation.rates import Rate
from jpq_jax.allocation.spending import (
    MOST,
    Book,
    Fit,
    Problem,
    Spent,
    cells_at,
    fit_of,
    keeps_order,
    nothing_spent,
    own,
    spend,
    total,
)
from jpq_jax.sketch.priced import Cells, Leaf, centroids, outcome
from jpq_jax.sketch.slots import ALL, ONE, WIDTHS, each, owner_of, summed
from jpq_jax.sketch.starting import lacks_levels, starting_levels
from jpq_jax.vocabulary import LEVELS

_HALVINGS = 24  # of the multiplier's range in octaves
_LOWEST = -64.0  # octaves below the largest weight's square
_ITERATIONS = 12  # of Lloyd's algorithm at a multiplier, and again at the end
_FOLLOWING = 2  # when a fit is followed
_COARSE = 10  # halvings whose codebooks begin anew
_GLANCE = 4  # iterations for them
_ROUNDS = 4  # of Lloyd's algorithm and of the multiplier, at the end


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


@jax.jit
def allocate(problem: Problem, start: Start) -> tuple[Fit, Candidates]:
    """The fit of least error that the search finds, never above the limit; and what to go on from.

    From a cold start the multiplier is bisected, with new codebooks at each. Otherwise it and the codebooks are
    those of weights and a limit a little different, and a few iterations follow; the bit-widths in force stay if
    those that the multiplier asks for do no better at the limit.
    """
    sides = _search(problem, start)
    rounds = jnp.where(start.is_cold, _ROUNDS, 1)

    fits = jax.vmap(lambda side: _settle(problem, side, rounds))(sides)
    best = jnp.argmax(fits.remainder.gain)  # of equals the first
    return jax.tree.map(lambda of_both: of_both[best], (fits, sides))


class _Costs(NamedTuple):
    """What the codebooks of one leaf are fitted under.

    Attributes:
      multiplier: [] float32, in the leaf's unit.
      bits: [codebooks] int32, their widths.
      leaf: whose they are.
      rate: static.
      slots: static, of the codebooks.
    """

    multiplier: jax.Array
    bits: jax.Array
    leaf: Leaf
    rate: Rate
    slots: tuple[int, ...]

    def cells(self, book: Book) -> Cells:
        return cells_at(book, self.multiplier, self.leaf, self.rate, self.slots)

    def improved(self, book: Book, iterations: jax.Array) -> tuple[Book, Cells]:
        """By so many iterations of Lloyd's algorithm; and the cells of what comes out."""

        def once(i: jax.Array, state: tuple[Book, Cells]) -> tuple[Book, Cells]:
            better = self._better(*state)  # before the first, no cells are known yet
            book = Book(*(jnp.where(i > 0, *pair) for pair in zip(better, state[0], strict=True)))
            return book, self.cells(book)

        shape = (len(self.leaf.cost), sum(self.slots))
        unknown = Cells(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
        return lax.fori_loop(0, iterations + 1, once, (book, unknown))

    def _better(self, book: Book, found: Cells) -> Book:
        """By one, which lowers error plus price, or leaves it as it is, at the rate's prices."""
        levels = centroids(book.levels, found, self.leaf, self.slots)
        counts = jnp.sum(found.counts, axis=0, dtype=jnp.int32)
        price = self.rate.price(counts, self.bits, self.leaf.size, self.slots)
        book = Book(levels, jnp.where(levels == 0, 0, price))
        return book if keeps_order(self.rate, self.leaf) else ascending(book, self.slots)


def ascending(book: Book, slots: tuple[int, ...]) -> Book:
    """Each codebook in order again. book: [slots]."""
    owner = jnp.asarray(owner_of(slots), jnp.int32)
    return Book(*lax.sort((owner, *book), num_keys=2)[1:])


def _search(problem: Problem, start: Start) -> Candidates:
    """Codebooks just within the budget, and just beyond it. All fields: [2, ...].

    The first halvings, which are far apart, begin anew with a few iterations of Lloyd's algorithm; one takes as many
    as it needs; and those after it, each a step half as wide, go on from the one before.
    """
    cold, rate = start.is_cold, problem.rate
    widths = jnp.asarray(WIDTHS)

    def begun(book: Book, leaf: Leaf, multiplier: jax.Array) -> Book:
        """All codebooks from a cold start, else those that Lloyd's algorithm cannot bring back by itself."""
        price = jnp.minimum(multiplier * widths.astype(jnp.float32), MOST)
        levels = starting_levels(leaf, price)
        fresh = Book(levels, jnp.where(levels == 0, 0, each(widths.astype(jnp.float32), ALL)))
        kept = summed(cells_at(book, multiplier, leaf, rate, ALL).counts, ALL)
        lost = lacks_levels(book.levels, levels, ALL) | (jnp.sum(kept, axis=0) == 0)
        is_new = cold | each(lost, ALL)
        return Book(*(jnp.where(is_new, *pair) for pair in zip(fresh, book, strict=True)))

    def fit(i: jax.Array, book: Book, leaf: Leaf, multiplier: jax.Array) -> tuple:
        costs = _Costs(multiplier, widths, leaf, rate, ALL)
        begins = ~cold | (i <= _COARSE)
        book = lax.cond(begins, begun, lambda book, *_: book, book, leaf, multiplier)
        few = jnp.where(i < _COARSE, _GLANCE, jnp.where(i == _COARSE, _ITERATIONS, _FOLLOWING))
        iterations = jnp.where(cold, few, _FOLLOWING)
        book, found = costs.improved(book, iterations)
        counts, gain = outcome(book.levels, found, leaf, ALL)
        bits = rate.of_leaf(counts, widths, leaf.size, ALL)
        best = jnp.argmin(jnp.minimum(multiplier * bits.astype(jnp.float32), MOST) - gain)
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
            costs = _Costs(multiplier, bits[None], leaf, problem.rate, ONE)
            return costs.improved(book, iterations)[0]

        return jax.vmap(improved)(book, multiplier, bits, problem.leaves), spent

    book = jax.vmap(_codebook)(Book(side.levels, side.slot_bits), bits)
    start = book, nothing_spent(book, problem)
    book, spent = lax.fori_loop(0, rounds + 1, once, start)
    return fit_of(problem, book, bits, spent)


def _codebook(books: Book, bits: jax.Array) -> Book:
    """That of one bit-width, filled up with zero levels. books: [slots of ALL]."""
    start = 2**bits - 2 + (bits - 1)
    slot = jnp.arange(LEVELS, dtype=jnp.int32)
    mine = slot <= 2**bits
    place = jnp.where(mine, start + slot, 0)
    levels, slot_bits = (jnp.where(mine, part[place], 0) for part in books)
    order = jnp.argsort(levels)  # stable
    return Book(levels[order], slot_bits[order])
