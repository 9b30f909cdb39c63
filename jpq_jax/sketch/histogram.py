"""What one pass over a leaf keeps of it: a histogram of the nonzero weights, by which codebooks are fitted."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jpq_jax.sharding import replicated

BINS = 4096


class Sketch(NamedTuple):
    """Nonzero weights of one leaf in equal bins from the smallest to the largest.

    Attributes:
      count: [BINS] float32, weights per bin.
      mean: [BINS] float32, their mean; 0 in an empty bin.
      low: [] float32, the smallest nonzero weight; 0 if there is none.
      high: [] float32, the largest.
    """

    count: jax.Array
    mean: jax.Array
    low: jax.Array
    high: jax.Array


@replicated
def sketch(w: jax.Array) -> Sketch:
    """One pass over `w` [...] float32. Sketches need no order: those of a sharded leaf's parts add up."""
    present = w != 0
    some = jnp.any(present)
    low = jnp.where(some, jnp.min(w, where=present, initial=jnp.inf), 0)
    high = jnp.where(some, jnp.max(w, where=present, initial=-jnp.inf), 0)
    # Scaled before the subtraction, so that a range wider than float32 holds does not overflow.
    width = high / BINS - low / BINS
    position = jnp.where(width > 0, (w - low) / jnp.where(width > 0, width, 1), 0)
    bin_ = jnp.where(present, jnp.clip(position.astype(jnp.int32), 0, BINS - 1), BINS)
    zeros = jnp.zeros(BINS, jnp.float32)
    # Counted in integers: a float32 count stops at 2**24. Absent weights fall out of range.
    count = jnp.zeros(BINS, jnp.int32).at[bin_].add(1, mode="drop").astype(jnp.float32)
    total = zeros.at[bin_].add(w, mode="drop")
    return Sketch(count, total / jnp.maximum(count, 1), low, high)
