"""The first weights of a kind in row-major order, found by counting, axis by axis: nothing is flattened."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sharding import replicated


@replicated
def end_of_first(chosen: jax.Array, number: jax.Array) -> jax.Array:
    """The place after the first `number` true entries of `chosen`, which has at least as many.

    Returns:
      [axes] int32: exactly `number` true entries come before it in row-major order.
    """
    chosen, left, place = jnp.atleast_1d(chosen), number, []
    while chosen.ndim:
        before = jnp.cumsum(_in_rows(chosen))
        # In a row that is whole already the place is its beginning, in the last axis the entry after.
        row = jnp.minimum(jnp.sum(before < left, dtype=jnp.int32), chosen.shape[0] - 1)
        left = left - jnp.where(row > 0, before[row - 1], 0)
        place.append(row)
        chosen = _row(chosen, row)
    place[-1] = place[-1] + 1
    return jnp.stack(place)


@replicated
def _in_rows(chosen: jax.Array) -> jax.Array:
    """How many are chosen in each row. By itself, so that these numbers are what every device gets, not the rows."""
    return jnp.sum(chosen, axis=tuple(range(1, chosen.ndim)), dtype=jnp.int32)


def _row(chosen: jax.Array, row: jax.Array) -> jax.Array:
    if jax.device_count() == 1:
        return lax.dynamic_index_in_dim(chosen, row, 0, keepdims=False)
    # Of a sharded axis, an entry can be had without a gather only by looking at all.
    is_row = lax.broadcasted_iota(jnp.int32, chosen.shape, 0) == row
    return jnp.any(chosen & is_row, axis=0)


def is_before(shape: tuple[int, ...], place: jax.Array) -> jax.Array:
    """Which entries of an array come before a place in row-major order. place: [axes] int32."""
    if not shape:
        return place[0] > 0
    before = jnp.zeros(shape, bool)
    for axis in reversed(range(len(shape))):
        index = lax.broadcasted_iota(jnp.int32, shape, axis)
        before = (index < place[axis]) | ((index == place[axis]) & before)
    return before
