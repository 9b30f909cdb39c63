"""The first weights of a kind in row-major order, found by counting, axis by axis: no sharded array is flattened."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sharding import lying_like, replicated

_ROW = 4096  # codes that are counted in int16
_PART = 256 * _ROW  # codes that are looked at at a time, so that they stay in a core's cache


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


def keep_first(code: jax.Array, number: jax.Array) -> jax.Array:
    """Of the negative codes the first `number` in row-major order lose their sign, the others are 0.

    code: [...] int16, not empty. number: [] int32; 0 only where no code is negative.
    """
    if jax.device_count() == 1 and code.size > _PART:
        return keep_first_in_place(code, number)

    def kept() -> jax.Array:
        end = end_of_first(code < 0, number)
        chosen = lying_like(code, lambda code, end: is_before(code.shape, end))(code, end)
        return jnp.where(chosen, jnp.abs(code), jnp.maximum(code, 0))

    return lax.cond(number > 0, kept, lambda: code)


def keep_first_in_place(code: jax.Array, number: jax.Array) -> jax.Array:
    """Part by part: a second array as large as the codes would take longer than all else here."""

    def go_on(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        flat, left = state
        # The last part begins earlier, so that it ends with the codes: in those once seen, none is negative any more.
        part = lax.dynamic_slice_in_dim(flat, i * _PART, _PART)
        kept, left = _keep_first_of_rows(part.reshape(-1, _ROW), left)
        return lax.dynamic_update_slice_in_dim(flat, kept.reshape(-1), i * _PART, 0), left

    rounds = jnp.where(number > 0, -(-code.size // _PART), 0)
    flat, _ = lax.fori_loop(0, rounds, go_on, (code.reshape(-1), number))
    return flat.reshape(code.shape)


def _keep_first_of_rows(rows: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same of [rows, _ROW] codes, of which perhaps fewer are negative; and how many are left to keep."""
    waits = rows < 0
    # Counted in the codes' own width: wider, it takes seven times as long.
    before = jnp.cumsum(jnp.sum(waits, axis=1, dtype=jnp.int16).astype(jnp.int32))
    kept = jnp.minimum(number, before[-1])
    row = jnp.sum(before < kept, dtype=jnp.int32)
    inside = jnp.cumsum(lax.dynamic_index_in_dim(waits, row, 0, keepdims=False), dtype=jnp.int32)
    column = jnp.sum(inside <= kept - (before[row] - inside[-1]), dtype=jnp.int32)
    chosen = is_before(rows.shape, jnp.stack([row, jnp.where(kept > 0, column, 0)]))
    return jnp.where(chosen, jnp.abs(rows), jnp.maximum(rows, 0)), number - kept
