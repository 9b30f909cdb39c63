"""Codebooks side by side, in one array of slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.vocabulary import LEVELS, MAX_BITS

WIDTHS = np.arange(1, MAX_BITS + 1, dtype=np.int32)
ALL = tuple(2**b + 1 for b in range(1, MAX_BITS + 1))
ONE = (LEVELS,)
"""Slots of codebooks that are fitted side by side: one for each bit-width, or a single one of any.

A codebook's values stand in ascending order in consecutive slots, 0 among them, repeated in those not used.
"""


def is_first(slots: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(sum(slots)), np.cumsum((0, *slots)))


def is_last(slots: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(sum(slots)) + 1, np.cumsum(slots))


def owner_of(slots: tuple[int, ...]) -> np.ndarray:
    """Which codebook each slot belongs to."""
    return np.repeat(np.arange(len(slots)), slots)


def summed(x: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """From one number for each slot to the sum of each codebook: [..., slots] to [..., codebooks]."""
    return jnp.sum(by_codebook(x, slots, 0), axis=-1, dtype=x.dtype)


def by_codebook(x: jax.Array, slots: tuple[int, ...], neutral: float) -> jax.Array:
    """[..., codebooks, slots], those of other codebooks neutral: far fewer instructions to compile than to cut it up."""
    mine = owner_of(slots)[None, :] == np.arange(len(slots))[:, None]
    mine = mine.reshape((1,) * (x.ndim - 1) + mine.shape)
    return jnp.where(mine, x[..., None, :], jnp.asarray(neutral, x.dtype))


def each(x: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """From one number for each codebook to one for each slot."""
    return x.at[..., owner_of(slots)].get(mode="promise_in_bounds")


def following(x: jax.Array) -> jax.Array:
    """What the slot after each one has, 0 after the last. Unlike `jnp.roll` it is compiled into what makes use of it."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(-1, 1, 0)])


def preceding(x: jax.Array) -> jax.Array:
    """What the slot before each one has, 0 before the first."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(1, -1, 0)])


def highest_so_far(x: jax.Array, slots: tuple[int, ...]) -> jax.Array:
    """[slots]: of each slot and those before it in its codebook. By doubling, since a window for each slot takes far longer."""
    slot, owner = jnp.arange(sum(slots), dtype=jnp.int32), jnp.asarray(owner_of(slots), jnp.int32)

    def double(i: jax.Array, x: jax.Array) -> jax.Array:
        other = jnp.maximum(slot - (1 << i), 0)
        is_mine = owner.at[other].get(mode="promise_in_bounds") == owner
        before = x.at[other].get(mode="promise_in_bounds")
        return jnp.where(is_mine, jnp.maximum(x, before), x)

    return lax.fori_loop(0, (max(slots) - 1).bit_length(), double, x)
