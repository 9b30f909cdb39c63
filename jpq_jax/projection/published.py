"""The two projections of Yang et al., CVPR 2020 (arXiv 1910.05897), and the sparse-quantized codes they end in.

Each solves half of

    min_Q sum_i (W_i - Q_i)^2   subject to   sum_l b_l nnz_l(Q) <= capacity

`sparsify` chooses the support with the bit-widths fixed, `quantize` the bit-widths and values with the support
fixed. Both take the compressed leaves as a list of float32 arrays, and are traced into the caller's program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.allocation.knapsack import choice_knapsack, support_knapsack
from jpq_jax.plan import Where, check_published, prepared, with_compressed
from jpq_jax.projection.numbering import numbered
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.codebooks import Codebooks, fit_codebooks, nearest_level
from jpq_jax.sketch.histogram import power_of_two, sketch
from jpq_jax.vocabulary import LEVELS, MAX_BITS, Budget, Codes, PyTree, check_budget


class Quantization(NamedTuple):
    """Attributes:
    levels: [leaves, 257] float32, ascending; zero is among them.
    bits: [leaves] int32 in 1..8.
    """

    levels: jax.Array
    bits: jax.Array


def sparsify(weights: Sequence[jax.Array], bits: jax.Array, capacity: jax.Array) -> list[jax.Array]:
    """The projection onto the support: weights outside the 0-1 knapsack's choice become 0."""
    masks = support_knapsack(weights, bits, capacity)
    return [jnp.where(mask, w, 0) for mask, w in zip(masks, weights, strict=True)]


def nonzeros(weights: Sequence[jax.Array]) -> jax.Array:
    """[leaves] uint32."""
    return jnp.stack([jnp.sum(w != 0, dtype=jnp.uint32) for w in weights])


def quantize(weights: Sequence[jax.Array], counts: jax.Array, capacity: jax.Array) -> Quantization:
    """The projection onto bit-widths and values: the multiple-choice knapsack over k-means codebooks.

    Item b of leaf l costs b * counts[l] bits and has the profit -(squared error of l's nonzeros at b bits).

    Args:
      weights: float32 leaves; their nonzeros are fitted.
      counts: [leaves] uint32, the nonzeros that are paid for (of W, where V = quantize(W + U)).
      capacity: [] uint32; at least one bit per counted nonzero, or every leaf gets 1 bit.
    """
    books = _codebooks(weights)
    cost = counts[:, None] * jnp.arange(1, MAX_BITS + 1, dtype=jnp.uint32)[None, :]
    share = (books.unit / jnp.max(books.unit)) ** 2
    item = choice_knapsack(cost, -books.distortion * share[:, None], capacity).item
    return _at_item(books, item)


def quantize_at(weights: Sequence[jax.Array], bits: jax.Array) -> Quantization:
    """k-means codebooks at given bit-widths. bits: [leaves] int32 in 1..8."""
    return _at_item(_codebooks(weights), bits - 1)


def _codebooks(weights: Sequence[jax.Array]) -> Codebooks:
    sketches = [sketch(w) for w in weights]
    return lax.map(fit_codebooks, jax.tree.map(lambda *parts: jnp.stack(parts), *sketches))


def _at_item(books: Codebooks, item: jax.Array) -> Quantization:
    levels = jnp.take_along_axis(books.levels, item[:, None, None], axis=1)[:, 0]
    return Quantization(levels, item + 1)


def snap(weights: Sequence[jax.Array], levels: jax.Array) -> list[jax.Array]:
    """Every nonzero at its nearest level; pruned weights stay 0. levels: [leaves, 257]."""

    def snap_leaf(w: jax.Array, levels: jax.Array) -> jax.Array:
        return jnp.where(w == 0, 0, levels[nearest_level(levels, w)])

    return [lying_like(w, snap_leaf)(w, levels[i]) for i, w in enumerate(weights)]


def to_codes(
    weights: Sequence[jax.Array], quantization: Quantization, dtypes: Sequence[str]
) -> list[Codes]:
    """Codes of sparse weights at their nearest levels, with the values in use only and bits to match."""
    return [
        _leaf_codes(w, quantization.levels[i], dtype)
        for i, (w, dtype) in enumerate(zip(weights, dtypes, strict=True))
    ]


def _place(w: jax.Array, levels: jax.Array) -> jax.Array:
    """Each weight's index among the levels; out of their range if it is pruned."""
    return jnp.where(w == 0, LEVELS, nearest_level(levels, w))


@replicated
def _members(w: jax.Array, levels: jax.Array) -> jax.Array:
    return jnp.zeros(LEVELS, jnp.int32).at[_place(w, levels)].add(1, mode="drop")


def _leaf_codes(w: jax.Array, levels: jax.Array, dtype: str) -> Codes:
    used = (_members(w, levels) > 0) & (levels != 0)
    code_of_place, codebook, bits = numbered(levels, used)

    def look_up(w: jax.Array, levels: jax.Array, code_of_place: jax.Array) -> jax.Array:
        return code_of_place.at[_place(w, levels)].get(mode="fill", fill_value=0)

    code = lying_like(w, look_up)(w, levels, code_of_place)
    return Codes(code, codebook, bits, dtype)


def project_alternating(
    params: PyTree,
    budget: Budget,
    *,
    where: Where = None,
    start_bits: int = 3,
    rounds: int = 3,
) -> PyTree:
    """Sparse-quantized codes of `params` by alternating the two published projections; the best round is kept.

    Heuristically solves

        min_Q sum_i (W_i - Q_i)^2   subject to   sum_l b_l nnz_l(Q) <= budget

    Args:
      params: any pytree of arrays.
      budget: the budget; never exceeded.
      where: which leaves to compress, as in `plan_leaves`.
      start_bits: bit-width of every leaf when the first support is chosen.
      rounds: how often both projections run, at least 1.

    Returns:
      The compressed tree: `params` with `Codes` in place of the compressed leaves.

    Raises:
      ValueError: nothing to compress, weights that are not finite, or an option out of range.
    """
    if not 1 <= start_bits <= MAX_BITS or rounds < 1:
        raise ValueError(
            f"got start_bits={start_bits}, rounds={rounds}; expected 1 to {MAX_BITS}, at least 1"
        )
    check_budget("project_alternating", budget)
    plan, limit, leaves, dtypes = prepared(params, budget, where)
    check_published("project_alternating", plan)
    codes = _alternate(leaves, jnp.uint32(limit), dtypes, start_bits, rounds)
    return with_compressed(params, plan, codes)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _alternate(
    leaves: list[jax.Array], limit: jax.Array, dtypes: tuple[str, ...], start_bits: int, rounds: int
) -> list[Codes]:
    weights = [w.astype(jnp.float32) for w in leaves]
    # Squares in units of the largest magnitude neither overflow nor vanish.
    unit = power_of_two(jnp.max(jnp.stack([jnp.max(jnp.abs(w), initial=0) for w in weights])))

    def one_round(_: jax.Array, state: tuple) -> tuple:
        bits, best, least = state
        kept = sparsify(weights, bits, limit)
        quantization = quantize(kept, nonzeros(kept), limit)
        snapped = snap(kept, quantization.levels)
        error = sum(
            (jnp.sum((w / unit - q / unit) ** 2) for w, q in zip(weights, snapped, strict=True)),
            jnp.float32(0),
        )
        better = error < least
        best = jax.tree.map(functools.partial(jnp.where, better), (bits, quantization), best)
        return quantization.bits, best, jnp.where(better, error, least)

    bits = jnp.full(len(weights), start_bits, jnp.int32)
    empty = Quantization(jnp.zeros((len(weights), LEVELS), jnp.float32), bits)
    start = (bits, (bits, empty), jnp.float32(jnp.inf))
    _, (support_bits, quantization), _ = lax.fori_loop(0, rounds, one_round, start)
    return to_codes(sparsify(weights, support_bits, limit), quantization, dtypes)
