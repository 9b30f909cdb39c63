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
    Outcome,
    borders_of,
    cells,
    centroids,
    each,
    outcome,
    starting_levels,
)
from jpq_jax.vocabulary import LEVELS

_MOST = np.float32(1e30)  # a price at which nothing is kept, and that can still be multiplied by 0
_HALVINGS = 24  # of the multiplier's range in octaves
_LOWEST = -64.0  # octaves below the largest weight's square
_ITERATIONS = 12  # of Lloyd's algorithm at a multiplier, and again at the end
_FOLLOWING = 2  # when a fit is followed
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


class Fit(NamedTuple):
    """One codebook for each leaf, and what is kept of the leaves.

    Attributes:
      levels: [leaves, 257] float32, ascending, in the leaves' own units; 0 is among them.
      bits: [leaves] int32 in 1..8.
      slot_bits: [leaves, 257] float32, what a weight of each level takes, a pruned one being free.
      multiplier: [] float32, of the smallest at which the budget holds.
      below: [] float32, the next below it, at which it does not; the same where all that helps is kept.
    """

    levels: jax.Array
    bits: jax.Array
    slot_bits: jax.Array
    multiplier: jax.Array
    below: jax.Array


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
        return fit, _total_gain(problem, fit)

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
    iterations: jax.Array,
) -> Book:
    """Iterations of one leaf's codebooks; each lowers error plus price, or leaves it as it is."""

    def step(_: int, state: Book) -> Book:
        found = cells_at(state, multiplier, leaf, slots)
        levels = centroids(state.levels, found, leaf, slots)
        counts = jnp.sum(found.counts, axis=0, dtype=jnp.int32)
        return Book(levels, _slot_bits(levels, counts, bits, leaf, rate, slots))

    return lax.fori_loop(0, iterations, step, state)


def _slot_bits(
    levels: jax.Array,
    counts: jax.Array,
    bits: jax.Array,
    leaf: Leaf,
    rate: Rate,
    slots: tuple[int, ...],
) -> jax.Array:
    return jnp.where(levels == 0, 0, rate.price(counts, bits, leaf.size, slots))


def borders_at(state: Book, multiplier: jax.Array, leaf: Leaf, slots: tuple[int, ...]) -> jax.Array:
    """[classes, slots], of one leaf, at a multiplier in its own unit."""
    price = jnp.minimum(multiplier * state.slot_bits, _MOST)
    return borders_of(state.levels, price, leaf, slots)


def cells_at(state: Book, multiplier: jax.Array, leaf: Leaf, slots: tuple[int, ...]) -> Cells:
    border = borders_at(state, multiplier, leaf, slots)
    return cells(border, state.levels, leaf.tails, slots)


def _outcome(state: Book, multiplier: jax.Array, leaf: Leaf, slots: tuple[int, ...]) -> Outcome:
    return outcome(state.levels, cells_at(state, multiplier, leaf, slots), leaf, slots)


def total(bits: jax.Array) -> jax.Array:
    """Of all leaves, counted as they are."""
    return jnp.sum(bits, dtype=bits.dtype)


def _search(problem: Problem, start: Start) -> Candidates:
    """Codebooks just within the budget, and just beyond it. All fields: [2, ...]."""
    cold, rate = start.is_cold, problem.rate
    iterations = jnp.where(cold, _ITERATIONS, _FOLLOWING)
    widths = jnp.asarray(WIDTHS)

    def fit(state: Book, leaf: Leaf, multiplier: jax.Array) -> tuple:
        price = jnp.minimum(multiplier * widths.astype(jnp.float32), _MOST)
        levels = jnp.where(cold, starting_levels(leaf, price), state.levels)
        first = jnp.where(levels == 0, 0, each(widths.astype(jnp.float32), ALL))
        state = Book(levels, jnp.where(cold, first, state.slot_bits))
        state = _lloyd(state, multiplier, widths, leaf, rate, ALL, iterations)
        counts, gain = _outcome(state, multiplier, leaf, ALL)
        bits = rate.of_leaf(counts, widths, leaf.size, ALL)
        best = jnp.argmin(jnp.minimum(multiplier * bits.astype(jnp.float32), _MOST) - gain)
        return state, (best + 1).astype(jnp.int32), bits[best]

    def evaluate(_: jax.Array, state: tuple) -> tuple:
        low, high, sides = state
        middle = (low + high) / 2
        multiplier = own(jnp.where(cold, jnp.exp2(middle), start.multiplier), problem.scale)
        before = Book(start.levels, start.slot_bits)
        after, bits, taken = jax.vmap(fit)(before, problem.leaves, multiplier)
        fits = total(taken) <= problem.limit
        # A search that goes on has but one multiplier, and compares its bit-widths with those in force.
        is_new = jnp.where(cold, jnp.stack([fits, ~fits]), True)
        found = Candidates(
            *(jnp.stack([part, part]) for part in after),
            jnp.stack([jnp.where(cold, bits, start.bits), bits]),
        )
        pick = jax.vmap(functools.partial(jnp.where))
        sides = jax.tree.map(functools.partial(pick, is_new), found, sides)
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high), sides

    nothing = jnp.zeros((2, *start.levels.shape), jnp.float32)
    empty = Candidates(nothing, nothing, jnp.ones((2, *start.bits.shape), jnp.int32))
    evaluations = jnp.where(cold, _HALVINGS, 1)
    state = (jnp.float32(_LOWEST), jnp.float32(2.0), empty)
    return lax.fori_loop(0, evaluations, evaluate, state)[2]


def _settle(problem: Problem, side: Candidates, rounds: jax.Array) -> Fit:
    """At fixed bit-widths: values and multiplier in turn, the multiplier so that the budget is spent."""
    bits = side.bits

    def once(i: jax.Array, state: tuple) -> tuple:
        state, _ = state
        multipliers = spend(problem, *state, bits)
        iterations = jnp.where(i < rounds, _ITERATIONS // _ROUNDS, 0)  # the last round only spends

        def improved(state: Book, multiplier: jax.Array, bits: jax.Array, leaf: Leaf) -> Book:
            return _lloyd(state, multiplier, bits[None], leaf, problem.rate, ONE, iterations)

        improved_state = jax.vmap(improved)(
            state, own(multipliers[0], problem.scale), bits, problem.leaves
        )
        return improved_state, multipliers

    levels, slot_bits = (
        jax.vmap(_codebook)(part, side.levels, bits) for part in (side.levels, side.slot_bits)
    )
    start = Book(levels, slot_bits), (jnp.float32(0), jnp.float32(0))
    state, multipliers = lax.fori_loop(0, rounds + 1, once, start)
    return Fit(state.levels, bits, state.slot_bits, *multipliers)


def _codebook(slots: jax.Array, levels: jax.Array, bits: jax.Array) -> jax.Array:
    """That of one bit-width, filled up with zero levels. slots, levels: [slots of ALL]."""
    start = 2**bits - 2 + (bits - 1)
    slot = jnp.arange(LEVELS, dtype=jnp.int32)
    mine = slot <= 2**bits
    place = jnp.where(mine, start + slot, 0)
    order = jnp.argsort(jnp.where(mine, levels[place], 0))  # stable
    return jnp.where(mine, slots[place], 0)[order]


def spend(
    problem: Problem, levels: jax.Array, slot_bits: jax.Array, bits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The smallest multiplier found at which the budget holds, and the float32 below it; both 0 if 0 does.

    levels, slot_bits: [leaves, 257].
    """

    def fits(multiplier: jax.Array) -> jax.Array:
        return total(taken(problem, levels, slot_bits, bits, multiplier)) <= problem.limit

    def halve(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = low + (high - low + 1) // 2  # never low, which may be no number
        holds = fits(lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(holds, low, middle), jnp.where(holds, middle, high)

    # The bit patterns of non-negative floats are in the order of their values; at 2**127 nothing is kept.
    low, high = lax.fori_loop(0, 31, halve, (jnp.int32(-1), jnp.int32(0x7F000000)))
    low = jnp.maximum(low, 0)
    return lax.bitcast_convert_type(high, jnp.float32), lax.bitcast_convert_type(low, jnp.float32)


def taken(
    problem: Problem,
    levels: jax.Array,
    slot_bits: jax.Array,
    bits: jax.Array,
    multiplier: jax.Array,
) -> jax.Array:
    """[leaves], bits at a multiplier."""

    def of_leaf(state: Book, multiplier: jax.Array, bits: jax.Array, leaf: Leaf) -> jax.Array:
        counts = _outcome(state, multiplier, leaf, ONE).counts
        return problem.rate.of_leaf(counts, bits[None], leaf.size, ONE)[0]

    state = Book(levels, slot_bits)
    return jax.vmap(of_leaf)(state, own(multiplier, problem.scale), bits, problem.leaves)


def _total_gain(problem: Problem, fit: Fit) -> jax.Array:
    def of_leaf(state: Book, multiplier: jax.Array, leaf: Leaf) -> jax.Array:
        return _outcome(state, multiplier, leaf, ONE).gain[0]

    state = Book(fit.levels, fit.slot_bits)
    gains = jax.vmap(of_leaf)(state, own(fit.multiplier, problem.scale), problem.leaves)
    return jnp.sum(gains * problem.scale)
