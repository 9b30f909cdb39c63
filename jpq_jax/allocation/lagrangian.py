"""Support, bit-widths and codebooks of all leaves together, under one budget, by one multiplier.

    min_Q sum_i (w_i - q_i)^2   subject to   sum_l b_l nnz_l(Q) <= S

For a multiplier m, a nonzero of leaf l at b bits has the price m b; each leaf takes the bit-width of least
squared error plus price. The leaves' problems are then apart from each other, and m alone is to be found.
Everything here works on sketches and is traced into the caller's program.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.sketch.priced import (
    ALL,
    ONE,
    WIDTHS,
    Outcome,
    Tails,
    cells,
    centroids,
    outcome,
    starting_levels,
    thresholds,
)
from jpq_jax.vocabulary import LEVELS

_MOST = np.float32(1e30)  # a price at which nothing is kept, and that can still be multiplied by 0
_HALVINGS = 24  # of the multiplier's range in octaves
_LOWEST = -64.0  # octaves below the largest weight's square
_ITERATIONS = 12  # of Lloyd's algorithm at a multiplier, and again at the end
_FOLLOWING = 2  # when a fit is followed
_ROUNDS = 4  # of Lloyd's algorithm and of the multiplier, at the end


class Fit(NamedTuple):
    """One codebook for each leaf, and what is kept of the leaves.

    Attributes:
      levels: [leaves, 257] float32, ascending, in the leaves' own units; 0 is among them.
      bits: [leaves] int32 in 1..8.
      multiplier: [] float32, of the smallest at which the budget holds.
      below: [] float32, the next below it, at which it does not; the same where all that helps is kept.
    """

    levels: jax.Array
    bits: jax.Array
    multiplier: jax.Array
    below: jax.Array


class Start(NamedTuple):
    """Where a search goes on from.

    Attributes:
      multiplier: [] float32.
      levels: [leaves, slots of ALL] float32, a codebook for every bit-width, in the leaves' own units.
      bits: [leaves] int32, those in force.
      is_cold: [] bool: there is nothing to go on from.
    """

    multiplier: jax.Array
    levels: jax.Array
    bits: jax.Array
    is_cold: jax.Array


class Candidates(NamedTuple):
    """Attributes:
    levels: [leaves, slots of ALL] float32.
    bits: [leaves] int32, those to take.
    """

    levels: jax.Array
    bits: jax.Array


def cold_start(leaves: int) -> Start:
    return Start(
        jnp.zeros([], jnp.float32),
        jnp.zeros((leaves, sum(ALL)), jnp.float32),
        jnp.ones(leaves, jnp.int32),
        jnp.ones([], bool),
    )


def allocate(
    tails: Tails, scale: jax.Array, limit: jax.Array, start: Start
) -> tuple[Fit, Candidates]:
    """The fit of least squared error that the search finds, never above the limit; and what to go on from.

    From a cold start the multiplier is bisected, with new codebooks at each. Otherwise it and the codebooks are
    those of weights and a limit a little different, and a few iterations follow; the bit-widths in force stay if
    those that the multiplier asks for do no better at the limit.

    Args:
      tails: of every leaf, stacked: [leaves, ...].
      scale: [leaves] float32, square of each leaf's unit by that of the largest.
      limit: [] uint32.
      start: in the leaves' units of now.
    """
    sides = _search(tails, scale, limit, start)
    rounds = jnp.where(start.is_cold, _ROUNDS, 1)

    def settled(side: Candidates) -> tuple[Fit, jax.Array]:
        fit = _settle(tails, scale, limit, side, rounds)
        return fit, _total_gain(tails, scale, fit)

    fits, gains = jax.vmap(settled)(sides)
    best = jnp.argmax(gains)  # of equals the first
    return jax.tree.map(lambda of_both: of_both[best], (fits, sides))


def prices(multiplier: jax.Array, scale: jax.Array, bits: jax.Array) -> jax.Array:
    """[leaves, codebooks], in the leaves' units. bits: [codebooks] or [leaves, codebooks]."""
    return jnp.minimum(multiplier * bits.astype(jnp.float32) / scale[:, None], _MOST)


def _lloyd(
    levels: jax.Array, price: jax.Array, tails: Tails, slots: tuple[int, ...], iterations: jax.Array
) -> jax.Array:
    """Iterations of one leaf's codebooks; each lowers squared error plus price, or leaves it as it is."""

    def step(_: int, levels: jax.Array) -> jax.Array:
        return centroids(levels, cells(levels, thresholds(levels, price, slots), tails, slots))

    return lax.fori_loop(0, iterations, step, levels)


def _outcome(levels: jax.Array, price: jax.Array, tails: Tails, slots: tuple[int, ...]) -> Outcome:
    return outcome(levels, cells(levels, thresholds(levels, price, slots), tails, slots), slots)


def rate(bits: jax.Array, counts: jax.Array) -> jax.Array:
    """sum_l b_l nnz_l, [] uint32."""
    return jnp.sum(bits.astype(jnp.uint32) * counts.astype(jnp.uint32), dtype=jnp.uint32)


def _search(tails: Tails, scale: jax.Array, limit: jax.Array, start: Start) -> Candidates:
    """Codebooks just within the budget, and just beyond it. Both fields: [2, ...]."""
    cold = start.is_cold
    iterations = jnp.where(cold, _ITERATIONS, _FOLLOWING)

    def fit(
        levels: jax.Array, tails: Tails, price: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        levels = jnp.where(cold, starting_levels(tails, price), levels)
        levels = _lloyd(levels, price, tails, ALL, iterations)
        count, gain = _outcome(levels, price, tails, ALL)
        best = jnp.argmin(price * count.astype(jnp.float32) - gain)
        return levels, (best + 1).astype(jnp.int32), count[best]

    def evaluate(_: jax.Array, state: tuple) -> tuple:
        low, high, sides = state
        middle = (low + high) / 2
        multiplier = jnp.where(cold, jnp.exp2(middle), start.multiplier)
        price = prices(multiplier, scale, jnp.asarray(WIDTHS)[None, :])
        levels, bits, count = jax.vmap(fit)(start.levels, tails, price)
        fits = rate(bits, count) <= limit
        # A search that goes on has but one multiplier, and compares its bit-widths with those in force.
        is_new = jnp.where(cold, jnp.stack([fits, ~fits]), True)
        found = Candidates(
            jnp.stack([levels, levels]), jnp.stack([jnp.where(cold, bits, start.bits), bits])
        )
        pick = jax.vmap(functools.partial(jnp.where))
        sides = jax.tree.map(functools.partial(pick, is_new), found, sides)
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high), sides

    empty = Candidates(
        jnp.zeros((2, *start.levels.shape), jnp.float32),
        jnp.ones((2, *start.bits.shape), jnp.int32),
    )
    evaluations = jnp.where(cold, _HALVINGS, 1)
    state = (jnp.float32(_LOWEST), jnp.float32(2.0), empty)
    return lax.fori_loop(0, evaluations, evaluate, state)[2]


def _settle(
    tails: Tails, scale: jax.Array, limit: jax.Array, side: Candidates, rounds: jax.Array
) -> Fit:
    """At fixed bit-widths: values and multiplier in turn, the multiplier so that the budget is spent."""
    bits = side.bits

    def once(i: jax.Array, state: tuple) -> tuple:
        levels, _ = state
        multipliers = spend(levels, bits, tails, scale, limit)
        price = prices(multipliers[0], scale, bits[:, None])
        iterations = jnp.where(i < rounds, _ITERATIONS // _ROUNDS, 0)  # the last round only spends

        def improved(levels: jax.Array, price: jax.Array, tails: Tails) -> jax.Array:
            return _lloyd(levels, price, tails, ONE, iterations)

        return jax.vmap(improved)(levels, price, tails), multipliers

    start = jax.vmap(_codebook)(side.levels, bits), (jnp.float32(0), jnp.float32(0))
    levels, multipliers = lax.fori_loop(0, rounds + 1, once, start)
    return Fit(levels, bits, *multipliers)


def _codebook(levels: jax.Array, bits: jax.Array) -> jax.Array:
    """That of one bit-width, filled up with zeros. levels: [slots of ALL]."""
    start = 2**bits - 2 + (bits - 1)
    slot = jnp.arange(LEVELS, dtype=jnp.int32)
    mine = slot <= 2**bits
    place = jnp.where(mine, start + slot, 0)
    return jnp.sort(jnp.where(mine, levels[place], 0))


def spend(
    levels: jax.Array, bits: jax.Array, tails: Tails, scale: jax.Array, limit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The smallest multiplier at which the budget holds, and the float32 below it; both 0 if 0 does.

    levels: [leaves, 257].
    """

    def fits(multiplier: jax.Array) -> jax.Array:
        return rate(bits, kept(levels, bits, tails, scale, multiplier)) <= limit

    def halve(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = low + (high - low + 1) // 2  # never low, which may be no number
        holds = fits(lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(holds, low, middle), jnp.where(holds, middle, high)

    # The bit patterns of non-negative floats are in the order of their values; at 2**127 nothing is kept.
    low, high = lax.fori_loop(0, 31, halve, (jnp.int32(-1), jnp.int32(0x7F000000)))
    low = jnp.maximum(low, 0)
    return lax.bitcast_convert_type(high, jnp.float32), lax.bitcast_convert_type(low, jnp.float32)


def kept(
    levels: jax.Array, bits: jax.Array, tails: Tails, scale: jax.Array, multiplier: jax.Array
) -> jax.Array:
    """[leaves] int32, the weights kept at a multiplier."""
    price = prices(multiplier, scale, bits[:, None])

    def of_leaf(levels: jax.Array, price: jax.Array, tails: Tails) -> jax.Array:
        return _outcome(levels, price, tails, ONE).counts[0]

    return jax.vmap(of_leaf)(levels, price, tails)


def _total_gain(tails: Tails, scale: jax.Array, fit: Fit) -> jax.Array:
    price = prices(fit.multiplier, scale, fit.bits[:, None])

    def of_leaf(levels: jax.Array, price: jax.Array, tails: Tails) -> jax.Array:
        return _outcome(levels, price, tails, ONE).gain[0]

    return jnp.sum(jax.vmap(of_leaf)(fit.levels, price, tails) * scale)
