"""Which code each value gets: those in use are counted from 1, in ascending order; 0 is a pruned weight."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jpq_jax.vocabulary import CODE_DTYPE, LEVELS, MAX_BITS


class Numbering(NamedTuple):
    """Attributes:
    code_of_slot: [257] int16, 0 where a slot is not in use.
    codebook: [257] float32, the value of each code.
    bits: [] int32, that index the values in use.
    """

    code_of_slot: jax.Array
    codebook: jax.Array
    bits: jax.Array


def numbered(values: jax.Array, used: jax.Array) -> Numbering:
    """values: [257] float32, in any order; used: [257] bool, of which at least one is false."""
    order = jnp.argsort(jnp.where(used, values, jnp.inf))
    rank = jnp.zeros(LEVELS, jnp.int32).at[order].set(jnp.arange(LEVELS, dtype=jnp.int32))
    codebook = jnp.roll(jnp.where(used, values, 0)[order], 1)  # the last in order is not used
    bits = _index_bits(jnp.sum(used, dtype=jnp.int32))
    return Numbering(jnp.where(used, rank + 1, 0).astype(CODE_DTYPE), codebook, bits)


def _index_bits(values: jax.Array) -> jax.Array:
    """ceil(log2(values)), at least 1: one more than the powers of two from 2 on that are below `values`."""
    return (1 + jnp.sum(values > 2 ** jnp.arange(1, MAX_BITS, dtype=jnp.int32))).astype(jnp.int32)
