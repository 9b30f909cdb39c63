"""From a fit to codes: a table by class and bin for every leaf, and the rest of the budget for the weights just below."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.allocation.spending import Fit, Problem
from jpq_jax.granularity import group_mean, group_shape, of_group
from jpq_jax.projection.numbering import numbered
from jpq_jax.projection.row_major import end_of_first, is_before, keep_first
from jpq_jax.projection.sketching import Sketched
from jpq_jax.projection.view import View
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.logarithmic import place_of, unit_of
from jpq_jax.sketch.priced import Cells, Leaf, centroids, slot_of_bin
from jpq_jax.sketch.slots import ONE
from jpq_jax.vocabulary import Codes, Treatment


class _Coding(NamedTuple):
    """How one leaf is coded.

    Attributes:
      exponent: [] int32, of the view's unit.
      at: [classes x (BINS + 1)] int16, the code by class and bin at the multiplier.
      below: the same just below it: where only the latter is not 0, weights wait.
      spare: [] int32, how many of those can be paid for.
      codebook: [257] float32.
      bits: [] int32.
    """

    exponent: jax.Array
    at: jax.Array
    below: jax.Array
    spare: jax.Array
    codebook: jax.Array
    bits: jax.Array


def codes_by(
    fit: Fit,
    problem: Problem,
    sketches: Sketched,
    treatments: Sequence[Treatment],
    dtypes: Sequence[str],
) -> list[Codes]:
    """Codes of the weights by a fit of their own sketches, exact in the budget."""
    found, borders = (fit.at.cells, fit.below.cells), (fit.spent.at, fit.spent.below)
    codings = jax.vmap(_coding)(
        fit.levels, found, borders, fit.remainder.paid, problem.leaves, sketches.exponent
    )
    columns = zip(sketches.views, treatments, dtypes, strict=True)
    return [
        _leaf_codes(jax.tree.map(lambda x, i=i: x[i], codings), *column)
        for i, column in enumerate(columns)
    ]


def _coding(
    levels: jax.Array,
    found: tuple[Cells, Cells],
    borders: tuple[jax.Array, jax.Array],
    spare: jax.Array,
    leaf: Leaf,
    exponent: jax.Array,
) -> _Coding:
    """found, borders: at the multiplier, and just below it."""
    of_slot, with_spare = (jnp.sum(c.counts, axis=0, dtype=jnp.int32) for c in found)
    used = (levels != 0) & ((of_slot > 0) | ((with_spare > 0) & (spare > 0)))
    values = centroids(levels, found[0], leaf, ONE) * unit_of(exponent)
    code_of_slot, codebook, bits = numbered(values, used)
    slots = jax.vmap(lambda border: slots_of_bins(levels, border, leaf))(jnp.stack(borders))
    at, below = code_of_slot[slots]
    return _Coding(exponent, at, below, spare, codebook, bits)


def slots_of_bins(levels: jax.Array, border: jax.Array, leaf: Leaf) -> jax.Array:
    """The slot of each class and bin, as `place_of` counts them: [classes x (BINS + 1)] int32.

    border: [classes, 257].
    """

    def of_class(border: jax.Array, mean: jax.Array) -> jax.Array:
        return slot_of_bin(levels, border, mean)

    return jax.vmap(of_class)(border, leaf.tails.mean).reshape(-1)


def _leaf_codes(coding: _Coding, view: View, treatment: Treatment, dtype: str) -> Codes:
    def look_up(w: jax.Array, table: jax.Array, exponent: jax.Array, kind: Any) -> jax.Array:
        place = place_of(w, exponent, kind)
        return table.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)

    # A branch of its own, so that the table is there before it is looked up: fused, it would be made anew for each weight.
    table = lax.cond(coding.spare > 0, lambda: _waiting_negative(coding), lambda: coding.at)
    code = lying_like(view.weights, look_up)(view.weights, table, coding.exponent, view.kind)
    if code.size:
        code = _with_spare(code, coding.spare, view, treatment)
    codes = Codes(code, coding.codebook, coding.bits, dtype)
    if treatment.scale == "leaf":
        return codes
    return dataclasses.replace(codes, scale=_best_scale(code, coding.codebook, view))


def _waiting_negative(coding: _Coding) -> jax.Array:
    return jnp.where(coding.at == 0, -coding.below, coding.at)


def _with_spare(code: jax.Array, spare: jax.Array, view: View, treatment: Treatment) -> jax.Array:
    """Of the weights that wait the first are kept, or those of the best groups, of equal ones the first."""
    importance = view.group_importance
    if importance is None:
        return keep_first(code, spare)

    def kept() -> jax.Array:
        waits = code < 0
        bits = lax.bitcast_convert_type(importance, jnp.int32)
        level = _level_of_last(bits, waits, spare)
        best = bits > level
        left = spare - replicated(_count)(waits & best)
        chosen = best | _first_groups(waits & (bits == level), left, treatment)
        return jnp.where(waits, jnp.where(chosen, -code, 0), code)

    return lax.cond(spare > 0, kept, lambda: code)


def _first_groups(chosen: jax.Array, number: jax.Array, treatment: Treatment) -> jax.Array:
    """The first of the chosen groups, as many as have no more weights than that."""
    group = group_shape(chosen.shape, treatment.granularity) or ()

    def first(chosen: jax.Array, number: jax.Array) -> jax.Array:
        of_groups = group_mean(chosen.astype(jnp.float32), group) > 0
        number = number // math.prod(group)
        before = is_before(of_groups.shape, end_of_first(of_groups, number))
        return of_group(of_groups & before & (number > 0), group)

    return lying_like(chosen, first)(chosen, number)


def _count(chosen: jax.Array) -> jax.Array:
    return jnp.sum(chosen, dtype=jnp.int32)


@replicated
def _level_of_last(bits: jax.Array, waiting: jax.Array, spare: jax.Array) -> jax.Array:
    """The lowest above which no more than `spare` wait. bits: [...] int32, at least 0."""

    def halve(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = low + (high - low + 1) // 2
        fits = _count(waiting & (bits > middle)) <= spare
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    return lax.fori_loop(0, 31, halve, (jnp.int32(-1), jnp.int32(0x7F800000)))[1]


@replicated
def _best_scale(code: jax.Array, codebook: jax.Array, view: View) -> jax.Array:
    """Of each output channel, by least squares; its norm where nothing is kept."""
    return best_scale(codebook[code.astype(jnp.int32)], view)


def best_scale(values: jax.Array, view: View) -> jax.Array:
    """By what the values of each output channel are best multiplied. values: [...], in units of the view's norms."""
    axes = tuple(range(values.ndim - 1))
    above = jnp.sum(values * view.weights, axis=axes, keepdims=True)
    below = jnp.sum(values**2, axis=axes, keepdims=True)
    return view.norms * jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 1)
