"""Whole multiples of a step for one leaf, at a price of a bit.

    min over q, step of   E f(D) + multiplier x bits(q),   D = sum_i (w_i - step q_i)^2 / E,   E = sum_i w_i^2

f is the integral of a / ((1 - D)^2 + b), a = 1 + b, b = 1/16: for small D the error itself, and for large ones error by what is left
of the signal, since an output that is nearly all error is of no use to the next layer, however little it would take to lose the rest.
An error that all weights of an output have in common counts twice, since what comes in has a mean: targets are moved by it.

bits(q) is that of `projection.lines`. A local minimum, by turns: the lines' activity, the tables, the numbers, the step. What is as
large as the leaf is looked at slab by slab, so that little more than the numbers is held beside the weights.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.projection.lines import (
    BALANCE,
    CLASSES,
    NUMBERS,
    Lines,
    cheapest,
    class_of,
    counts_of,
    lines_of_sums,
    nearest,
    prices_of,
)

_APPROACHING, _SETTLING = 6, 3  # iterations
_KEPT = 2.0**-4
_ZONE = 0.6  # steps below which numbers are 0 at first
_SLAB = 2**20  # weights that are looked at together
_LARGE = 2**22  # weights of which a second copy is too many


class LeafNumbers(NamedTuple):
    """Attributes:
    numbers: [...] int16, the leaf's shape; w is about unit x step x number.
    step: [] float32, of bfloat16's digits.
    """

    numbers: jax.Array
    step: jax.Array


def numbers_at(
    w: Any,
    multiplier: float,
    unit: float = 1.0,
    *,
    outputs: int | None = None,
    limit: float = math.inf,
) -> LeafNumbers:
    """A local minimum, from a fine step on: what is pruned once is dear to get back.

    Args:
      w: [...] floating, of JAX, NumPy, or anything that turns into an array; a large one that has parts, part by part.
      multiplier: squared error, by that of `unit`, for a bit, for a leaf that is all there; see `_KEPT`.
      unit: a power of two by which the weights are divided, so that squares neither overflow nor vanish.
      outputs: the axis of a layer's outputs; None if there is none.
      limit: magnitude above which weights are outliers and count as zeros, in that unit: the step is not made coarse for them.
    """
    scalars = (jnp.float32(x) for x in (multiplier, 1 / unit, limit))
    found, _ = _found(_given(w), *scalars, outputs)
    return found


def _given(w: Any) -> jax.Array:
    """An array that is nobody else's."""
    if isinstance(w, jax.Array):
        return w.copy()
    is_large = math.prod(w.shape) >= _LARGE
    if is_large and hasattr(w, "part"):
        return _put_together(w)
    if is_large:  # JAX holds NumPy arrays that it has shared until garbage is collected
        gc.collect()
    given = jax.device_put(np.asarray(w), may_alias=False)
    if is_large:
        given.block_until_ready()
        gc.collect()
    return given


def _put_together(w: Any) -> jax.Array:
    """Of its parts, so that the host never has a second copy of it. w: a `checkpoint.StoredLeaf`."""
    whole = jnp.zeros(w.shape, w.dtype)
    for first in range(0, w.size, _SLAB):
        whole.block_until_ready()  # memory that is still being written to would be copied
        whole = _with_part(whole, w.part(first, min(_SLAB, w.size - first)), first)
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _with_part(whole: jax.Array, part: jax.Array, first: int) -> jax.Array:
    flat = lax.dynamic_update_slice_in_dim(whole.reshape(-1), part, first, 0)
    return flat.reshape(whole.shape)


@functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
def _found(
    w: jax.Array, multiplier: jax.Array, by: jax.Array, limit: jax.Array, outputs: int | None
) -> tuple[LeafNumbers, jax.Array]:
    """And the weights themselves: only what is given and given back is not copied for the loops."""
    leaf = _Leaf(w, by, limit)
    square, of_weights = _weight_sums(leaf)
    mean = _mean_of_outputs(of_weights, w.shape, outputs)

    def own(error: jax.Array) -> jax.Array:
        """The multiplier where so much has been lost."""
        kept = 1 - error / jnp.where(square > 0, square, 1)
        return multiplier * (kept**2 + _KEPT) / (1 + _KEPT)

    def improve(i: int, state: _Search) -> _Search:
        """At first half way, in octaves, to the multiplier of this error, and to the step that it asks for."""
        lines = lines_of_sums(state.sums.of_sizes, state.sums.total)
        prices = prices_of(_counts(state.numbers, lines))
        numbers, sums = _all_cheapest(leaf, state, lines, prices)
        below = sums.squares
        step = jnp.where(below > 0, sums.products / jnp.where(below > 0, below, 1), state.step)
        known = _mean_of_outputs(sums.of_numbers, w.shape, outputs)
        shift = (state.shift + mean - step * known) / 2
        asked = own(square - step * sums.products)
        half_way = jnp.sqrt(state.multiplier * asked)
        nearer = step * jnp.sqrt(half_way / state.multiplier)
        return _Search(
            numbers,
            sums,
            jnp.where(i < _APPROACHING, nearer, step),
            jnp.where(i < _APPROACHING, half_way, asked),
            shift,
        )

    first = own(square)
    step = BALANCE * jnp.sqrt(first)
    numbers, sums = _begun(leaf, step)
    state = _Search(numbers, sums, step, first, jnp.zeros_like(mean))
    state = lax.fori_loop(0, _APPROACHING + _SETTLING, improve, state)
    step = state.step.astype(jnp.bfloat16).astype(jnp.float32)
    return LeafNumbers(state.numbers, step), w


class _Leaf(NamedTuple):
    """Attributes:
    weights: [...].
    by: [] float32, what they are multiplied by.
    limit: [] float32, above which a multiplied weight is an outlier.
    """

    weights: jax.Array
    by: jax.Array
    limit: jax.Array

    def slab(self, first: Any, height: int) -> jax.Array:
        """[height, columns] of the matrix, multiplied; zeros for outliers."""
        rows = lax.dynamic_slice_in_dim(_matrix(self.weights), first, height)
        scaled = rows.astype(jnp.float32) * self.by
        return jnp.where(jnp.abs(scaled) <= self.limit, scaled, 0)


class _Sums(NamedTuple):
    """Of the numbers.

    Attributes:
      of_sizes: for each axis [lines] float32, of their sizes.
      of_numbers: for each axis [lines] float32.
      total: [] float32, of their sizes.
      products: [] float32, with the weights.
      squares: [] float32.
    """

    of_sizes: tuple[jax.Array, ...]
    of_numbers: tuple[jax.Array, ...]
    total: jax.Array
    products: jax.Array
    squares: jax.Array


class _Search(NamedTuple):
    """Attributes:
    numbers: [...] int16.
    sums: of these.
    step: [] float32.
    multiplier: [] float32, that of this leaf.
    shift: by how much the numbers' targets lie above the weights, for each output.
    """

    numbers: jax.Array
    sums: _Sums
    step: jax.Array
    multiplier: jax.Array
    shift: jax.Array


def _axis_sums(x: jax.Array) -> tuple[jax.Array, ...]:
    axes = range(x.ndim)
    return tuple(jnp.sum(x, axis=[other for other in axes if other != axis]) for axis in axes)


def _mean_of_outputs(
    sums: tuple[jax.Array, ...], shape: tuple[int, ...], outputs: int | None
) -> jax.Array:
    """Of a shape that broadcasts; 0 without an axis of outputs, or where there is but one weight for each."""
    size = math.prod(shape)
    if outputs is None or not size or size == shape[outputs]:
        return jnp.zeros((1,) * len(shape), jnp.float32)
    axis = outputs % len(shape)
    others = [other for other in range(len(shape)) if other != axis]
    return jnp.expand_dims(sums[axis] * (shape[axis] / size), others)


def _matrix(x: jax.Array) -> jax.Array:
    """[rows, columns], the last axis its columns."""
    return x.reshape(-1, x.shape[-1]) if x.ndim and x.size else x.reshape(1, x.size)


def _exponents(lines: Lines) -> tuple[jax.Array, jax.Array]:
    """Of the rows and columns of the leaf as a matrix: [rows, 1] and [1, columns] int32. The base is in the rows'."""
    rows = lines.base.reshape(1)
    for of_axis in lines.exponents[:-1]:
        rows = (rows[:, None] + of_axis[None, :]).reshape(-1)
    columns = lines.exponents[-1] if lines.exponents else jnp.zeros(1, jnp.int32)
    return rows[:, None], columns[None, :]


def _slabs(
    shape: tuple[int, ...], body: Callable[[Any, int, jax.Array, Any], Any], carry: Any
) -> Any:
    """body(first row, number of rows, [number or 1, 1] which of them no slab had before, carry) for slab after slab."""
    rows, columns = shape
    if not rows * columns:
        return carry
    height = min(max(_SLAB // columns, 1), rows)
    if height == rows:
        return body(0, rows, jnp.ones((1, 1), bool), carry)

    def slab(i: Any, carry: Any) -> Any:
        first = jnp.minimum(i * height, rows - height)
        fresh = first + jnp.arange(height) >= i * height
        return body(first, height, fresh[:, None], carry)

    return lax.fori_loop(0, -(-rows // height), slab, carry)


def _weight_sums(leaf: _Leaf) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Of their squares, and of themselves over the lines of each axis."""
    shape = leaf.weights.shape
    rows, columns = _matrix(leaf.weights).shape

    def add(first: Any, height: int, fresh: jax.Array, carry: Any) -> Any:
        of_rows, of_columns, square = carry
        own = leaf.slab(first, height)
        new = jnp.where(fresh, own, 0)
        return (
            _written(of_rows, own, first),
            of_columns + jnp.sum(new, axis=0),
            square + jnp.sum(new * new),
        )

    start = jnp.zeros(rows, jnp.float32), jnp.zeros(columns, jnp.float32), jnp.float32(0)
    of_rows, of_columns, square = _slabs((rows, columns), add, start)
    return square, _of_axes(of_rows, of_columns, shape)


def _counts(numbers: jax.Array, lines: Lines) -> jax.Array:
    """As `lines.counts_of`."""
    matrix, (of_rows, of_columns) = _matrix(numbers), _exponents(lines)

    def add(first: Any, height: int, fresh: jax.Array, counts: jax.Array) -> jax.Array:
        own = lax.dynamic_slice_in_dim(matrix, first, height)
        kinds = class_of(lax.dynamic_slice_in_dim(of_rows, first, height) + of_columns)
        return counts + counts_of(own, kinds, fresh)

    return _slabs(matrix.shape, add, jnp.zeros((CLASSES, NUMBERS), jnp.float32))


def _all_cheapest(
    leaf: _Leaf, state: _Search, lines: Lines, prices: jax.Array
) -> tuple[jax.Array, _Sums]:
    """As `lines.cheapest`, of weights that are shifted."""
    of_rows, of_columns = _exponents(lines)
    shift, by_rows = _rows_or_columns(state.shift, leaf.weights.shape)

    def choose(own: jax.Array, first: Any) -> jax.Array:
        height = len(own)
        moved = own + (lax.dynamic_slice_in_dim(shift, first, height) if by_rows else shift)
        kinds = class_of(lax.dynamic_slice_in_dim(of_rows, first, height) + of_columns)
        return cheapest(moved, state.step, kinds, prices, state.multiplier)

    return _chosen(leaf, choose, state.numbers)


def _begun(leaf: _Leaf, step: jax.Array) -> tuple[jax.Array, _Sums]:
    """The nearest numbers, but more zeros."""

    def choose(own: jax.Array, _: Any) -> jax.Array:
        return jnp.where(jnp.abs(own / step) < _ZONE, 0, nearest(own / step))

    return _chosen(leaf, choose, jnp.zeros(leaf.weights.shape, jnp.int16))


def _rows_or_columns(shift: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, bool]:
    """As a matrix of one row or column; and whether it is a column, with a number for each row."""
    if shift.ndim == 0 or shift.size == shift.shape[-1]:
        return shift.reshape(1, -1), False
    return _matrix(jnp.broadcast_to(shift, (*shape[:-1], 1))), True


def _chosen(
    leaf: _Leaf, choose: Callable[[jax.Array, Any], jax.Array], numbers: jax.Array
) -> tuple[jax.Array, _Sums]:
    """Numbers of each slab of scaled weights, written over those given, and their sums."""
    shape = numbers.shape
    rows, columns = _matrix(numbers).shape

    def add(first: Any, height: int, fresh: jax.Array, carry: _Chosen) -> _Chosen:
        own = leaf.slab(first, height)
        found = choose(own, first)
        known = jnp.where(fresh, found, 0).astype(jnp.float32)
        return _Chosen(
            lax.dynamic_update_slice_in_dim(carry.numbers, found, first, 0),
            _written(carry.row_sizes, jnp.abs(found), first),
            _written(carry.row_numbers, found, first),
            carry.column_sizes + jnp.sum(jnp.abs(known), axis=0),
            carry.column_numbers + jnp.sum(known, axis=0),
            carry.products + jnp.sum(known * own),
            carry.squares + jnp.sum(known * known),
        )

    of_rows, of_columns = jnp.zeros(rows, jnp.float32), jnp.zeros(columns, jnp.float32)
    zero = jnp.float32(0)
    start = _Chosen(_matrix(numbers), of_rows, of_rows, of_columns, of_columns, zero, zero)
    found = _slabs((rows, columns), add, start)
    sums = _Sums(
        _of_axes(found.row_sizes, found.column_sizes, shape),
        _of_axes(found.row_numbers, found.column_numbers, shape),
        jnp.sum(found.column_sizes),
        found.products,
        found.squares,
    )
    return found.numbers.reshape(shape), sums


class _Chosen(NamedTuple):
    """Numbers of a matrix, and their sums, as far as the slabs have come."""

    numbers: jax.Array
    row_sizes: jax.Array
    row_numbers: jax.Array
    column_sizes: jax.Array
    column_numbers: jax.Array
    products: jax.Array
    squares: jax.Array


def _written(of_rows: jax.Array, slab: jax.Array, first: Any) -> jax.Array:
    sums = jnp.sum(slab.astype(jnp.float32), axis=1)
    return lax.dynamic_update_slice_in_dim(of_rows, sums, first, 0)


def _of_axes(
    of_rows: jax.Array, of_columns: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, ...]:
    """The sums over the lines of each axis, from those of the matrix."""
    if not math.prod(shape):
        return tuple(jnp.zeros(length, jnp.float32) for length in shape)
    leading = of_rows.reshape(shape[:-1])
    return (*_axis_sums(leading), of_columns) if shape else ()
