"""The largest weights, so many of each leaf, or so many of all leaves together; found by bisection, without a sort."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.allocation.knapsack import INFINITY, Cut, counts_of, index_of_quota


def largest_of_each(magnitudes: Sequence[jax.Array], most: jax.Array) -> Cut:
    """Keeps the `most[l]` largest of every leaf l, of equal ones the first in row-major order; never a zero.

    Args:
      magnitudes: of each leaf, see `knapsack.magnitude_of`.
      most: [leaves] uint32.
    """
    threshold = _least_that_fits(magnitudes, most, lambda counts: counts)
    return _with_ties(magnitudes, threshold, lambda kept, _: most - kept)


def largest_of_all(magnitudes: Sequence[jax.Array], most: jax.Array) -> Cut:
    """Keeps the `most` largest of all leaves together, of equal ones those of the earlier leaf. most: [] uint32."""
    leaves = len(magnitudes)

    def together(counts: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.sum(counts, dtype=jnp.uint32), (leaves,))

    def quotas(kept: jax.Array, equal: jax.Array) -> jax.Array:
        before = jnp.cumsum(equal, dtype=jnp.uint32) - equal
        left = most - jnp.sum(kept, dtype=jnp.uint32)
        return jnp.minimum(equal, left - jnp.minimum(before, left))

    threshold = _least_that_fits(magnitudes, jnp.broadcast_to(most, (leaves,)), together)
    return _with_ties(magnitudes, threshold, quotas)


def _least_that_fits(
    magnitudes: Sequence[jax.Array], most: jax.Array, total: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """[leaves] int32, the least pattern above 0 from which on there are no more than that."""

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # what lies from high on fits
        middle = jnp.maximum(low + (high - low) // 2, 1)
        counts = counts_of([m >= middle[i] for i, m in enumerate(magnitudes)])
        fits = total(counts) <= most
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    start = jnp.zeros(len(magnitudes), jnp.int32)
    return lax.fori_loop(0, 31, halve, (start, jnp.full_like(start, INFINITY + 1)))[1]


def _with_ties(
    magnitudes: Sequence[jax.Array],
    threshold: jax.Array,
    quotas: Callable[[jax.Array, jax.Array], jax.Array],
) -> Cut:
    """Of the weights just below the threshold, which are equal, the first ones are kept, too."""
    tie = jnp.where(threshold > 1, threshold - 1, -1)
    kept = counts_of([m >= threshold[i] for i, m in enumerate(magnitudes)])
    equal = counts_of([m == tie[i] for i, m in enumerate(magnitudes)])
    quota = quotas(kept, equal)
    threshold = jnp.where((tie > 0) & (quota >= equal), tie, threshold)
    return Cut(threshold, tie, index_of_quota(magnitudes, tie, quota))
