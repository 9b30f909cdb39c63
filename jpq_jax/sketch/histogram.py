"""What one pass over a leaf keeps of it: a histogram of the nonzero weights, by which codebooks are fitted."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sharding import replicated

BINS = 4096


class Sketch(NamedTuple):
    """Nonzero weights of one leaf in equal bins from the smallest to the largest, in units of `unit`.

    The weights of a bin are taken to lie evenly in mean +- reach.

    Attributes:
      unit: [] float32, a power of two, not above the largest magnitude: squares neither overflow nor vanish.
      low: [] float32, the smallest nonzero weight; 0 if there is none.
      width: [] float32, of a bin; 0 if there is at most one value.
      counts: [BINS] float32, weights per bin.
      mean: [BINS] float32, their mean; the left edge in an empty bin.
      reach: [BINS] float32, 0 where a bin holds fewer than two.
    """

    unit: jax.Array
    low: jax.Array
    width: jax.Array
    counts: jax.Array
    mean: jax.Array
    reach: jax.Array


@replicated
def sketch(w: jax.Array) -> Sketch:
    """One pass over `w` [...] float32. Sketches need no order: those of a sharded leaf's parts add up."""
    unit = power_of_two(jnp.max(jnp.abs(w), initial=0))
    w = w / unit
    present = w != 0
    some = jnp.any(present)
    low = jnp.where(some, jnp.min(w, where=present, initial=jnp.inf), 0)
    high = jnp.where(some, jnp.max(w, where=present, initial=-jnp.inf), 0)
    width = (high - low) / BINS
    position = jnp.where(width > 0, (w - low) / jnp.where(width > 0, width, 1), 0)
    place = jnp.clip(position.astype(jnp.int32), 0, BINS - 1)
    bin_ = jnp.where(present, place, BINS)  # absent weights fall out of range
    # Counted in integers: a float32 count stops at 2**24.
    count = jnp.zeros(BINS, jnp.int32).at[bin_].add(1, mode="drop").astype(jnp.float32)
    # Summed from the bin's edge: the rounding of long sums must not carry a mean out of its bin.
    beyond = w - (low + width * place.astype(jnp.float32))
    total = jnp.zeros(BINS, jnp.float32).at[bin_].add(beyond, mode="drop")
    inside = jnp.clip(total / jnp.maximum(count, 1), 0, width)
    mean = low + width * jnp.arange(BINS, dtype=jnp.float32) + inside
    reach = jnp.where(count > 1, jnp.minimum(inside, width - inside), 0)
    return Sketch(unit, low, width, count, mean, reach)


def power_of_two(x: jax.Array) -> jax.Array:
    """The largest power of two that is at most x, and at least 2**-126, by the bit pattern of x >= 0."""
    exponent = lax.bitcast_convert_type(x, jnp.int32) & 0x7F800000
    return lax.bitcast_convert_type(jnp.maximum(exponent, 1 << 23), jnp.float32)
