"""Which code each value gets: those in use are counted from 1, in ascending order; 0 is a pruned weight."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jpq_jax.sketch.slots import preceding
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
    """Slots of equal values get one code.

    values: [257] float32, in any order; used: [257] bool, of which at least one is false.
    """
    order = jnp.argsort(jnp.where(used, values, jnp.inf))
    ascending, in_use = values[order], used[order]
    is_first = jnp.arange(LEVELS, dtype=jnp.int32) == 0
    is_new = in_use & (is_first | (ascending != preceding(ascending)))
    code = jnp.where(in_use, jnp.cumsum(is_new, dtype=jnp.int32), 0)
    codebook = jnp.zeros(LEVELS, jnp.float32)
    codebook = codebook.at[jnp.where(is_new, code, LEVELS)].set(ascending, mode="drop")
    code_of_slot = jnp.zeros(LEVELS, CODE_DTYPE).at[order].set(code.astype(CODE_DTYPE))
    return Numbering(code_of_slot, codebook, index_bits(jnp.sum(is_new, dtype=jnp.int32)))


def index_bits(values: jax.Array) -> jax.Array:
    """ceil(log2(values)) of a number of values, at least 1: one more than the powers of two from 2 on that are below `values`."""
    return (1 + jnp.sum(values > 2 ** jnp.arange(1, MAX_BITS, dtype=jnp.int32))).astype(jnp.int32)
