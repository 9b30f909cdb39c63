"""Where the values of codebooks begin, before they are fitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sketch.logarithmic import SIDE, bin_holding
from jpq_jax.sketch.priced import Leaf
from jpq_jax.sketch.slots import ALL, by_codebook, each, summed


def starting_levels(leaf: Leaf, price: jax.Array, slots: tuple[int, ...] = ALL) -> jax.Array:
    """Values placed by the cube root of the density beyond sqrt(price), as is optimal for many levels (Panter-Dite).

    Of a uniform leaf the outermost of these only, and multiples of a step up to there.

    Args:
      leaf: what is to be fitted.
      price: [codebooks] float32.
      slots: of the codebooks.
    """
    tails = leaf.tails
    if leaf.whole is not None:  # in a group that is kept there are small weights too
        price = jnp.where(leaf.whole, 0, price)
    count = jnp.array(slots, jnp.int32) - 1
    rank = jnp.concatenate([jnp.arange(size, dtype=jnp.int32) for size in slots])
    at = bin_holding(jnp.sqrt(price))
    # Where nothing lies beyond, all that there is: a later price may be lower.
    nothing = tails.spread[0][at] + tails.spread[1][at] == 0
    at = jnp.where(nothing, 0, at)
    positive, negative = (tails.spread[side][at] for side in (0, 1))
    whole = positive + negative
    share = negative / jnp.where(whole > 0, whole, 1)
    below = jnp.round(count.astype(jnp.float32) * share).astype(jnp.int32)
    position = rank - each(below, slots)  # of the slot, from the zero

    side = (position < 0).astype(jnp.int32)
    of = jnp.where(side == 0, each(count - below, slots), each(below, slots))
    share = (jnp.abs(position).astype(jnp.float32) - 0.5) / jnp.maximum(of, 1).astype(jnp.float32)
    beyond = (1 - share) * jnp.where(side == 0, each(positive, slots), each(negative, slots))
    magnitude = tails.middle[side, _last_beyond(tails.spread, side, beyond)]
    free = jnp.where(position == 0, 0, jnp.where(side == 0, magnitude, -magnitude))
    if leaf.uniform is None:
        return free
    reach = jnp.max(by_codebook(jnp.abs(free), slots, 0), axis=-1)
    step = each(reach / (count // 2).astype(jnp.float32), slots)
    number = (rank - each(count // 2, slots)).astype(jnp.float32)
    return jnp.where(leaf.uniform, step * number, free)


def lacks_levels(levels: jax.Array, wanted: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """[codebooks] bool: whether one has no value of a sign, of which there is one among the wanted. [slots] both.

    A value never changes its sign in Lloyd's algorithm.
    """

    def number(levels: jax.Array) -> jax.Array:
        return summed((levels > 0).astype(jnp.int32), slots)

    pairs = ((levels, wanted), (-levels, -wanted))
    lacking = [(number(mine) == 0) & (number(theirs) > 0) for mine, theirs in pairs]
    return lacking[0] | lacking[1]


def _last_beyond(spread: jax.Array, side: jax.Array, amount: jax.Array) -> jax.Array:
    """The last bin of its side beyond which there is that much; all are [slots]. spread: [2, SIDE + 1], falling."""

    def halve(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state  # it is there at low, or low is 0; and no more at high
        middle = (low + high) // 2
        enough = spread.at[side, middle].get(mode="promise_in_bounds") >= amount
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = jnp.zeros_like(side), jnp.full_like(side, SIDE)
    return lax.fori_loop(0, SIDE.bit_length(), halve, start)[0]
