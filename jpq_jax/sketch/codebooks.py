"""1-D k-means on a sketch: a codebook for every bit-width 1..8, with zero as a fixed level (Yang et al., CVPR 2020)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sketch.histogram import BINS, Sketch
from jpq_jax.vocabulary import LEVELS, MAX_BITS

MAX_ITERATIONS = 100
TOLERANCE = 1e-3  # of the distortion, from one iteration to the next


class Codebooks(NamedTuple):
    """Attributes:
    levels: [8, 257] float32, ascending, for bit-widths 1..8. Zero is among them, and stands for unused levels too.
    distortion: [8] float32, squared error of the sketched nonzeros at their nearest levels, in units of unit^2.
    unit: [] float32, a power of two, the sketch's.
    """

    levels: jax.Array
    distortion: jax.Array
    unit: jax.Array


class _Lloyd(NamedTuple):
    levels: jax.Array  # [8, 257]
    distortion: jax.Array  # [8]
    settled: jax.Array  # [8] bool
    iteration: jax.Array  # []


class _Clusters(NamedTuple):
    counts: jax.Array  # [257], weights nearest to each level
    total: jax.Array  # [257], their sum
    distortion: jax.Array  # []


def fit_codebooks(data: Sketch) -> Codebooks:
    """Lloyd's algorithm for all bit-widths at once; a local minimum of

        sum_i min_k (w_i - c_k)^2   over 2**b values c_1, c_2, ... beside the fixed c_0 = 0

    from equally spaced values between the smallest and the largest nonzero weight, until the distortion
    changes by less than 1e-3 of itself, at most 100 iterations. A value that no weight is nearest to is
    given up, as published. A bin's weights are split at a border that falls among them: were they moved
    together, the iteration would stop as soon as no border moves by a whole bin.
    """
    start = _Lloyd(
        levels=_equally_spaced(data),
        distortion=jnp.full(MAX_BITS, jnp.inf, jnp.float32),
        settled=jnp.zeros(MAX_BITS, bool),
        iteration=jnp.int32(0),
    )
    result = lax.while_loop(
        lambda s: ~jnp.all(s.settled) & (s.iteration < MAX_ITERATIONS),
        lambda s: _step(s, data),
        start,
    )
    distortion = _clusters(result.levels, data).distortion
    return Codebooks(result.levels * data.unit, distortion, data.unit)


def nearest_level(levels: jax.Array, w: jax.Array) -> jax.Array:
    """Index of the level nearest to each weight; halfway, the lower. levels: [257] ascending."""
    return jnp.searchsorted(_midpoints(levels), w, method="scan")


def _midpoints(levels: jax.Array) -> jax.Array:
    return levels[:-1] / 2 + levels[1:] / 2


def _equally_spaced(data: Sketch) -> jax.Array:
    values = 2 ** jnp.arange(1, MAX_BITS + 1, dtype=jnp.int32)[:, None]
    place = jnp.arange(LEVELS, dtype=jnp.int32)[None, :]
    share = place.astype(jnp.float32) / (values - 1).astype(jnp.float32)
    spaced = data.low + BINS * data.width * share
    return jnp.sort(jnp.where(place < values, spaced, 0), axis=1)


def _clusters_of_one(levels: jax.Array, data: Sketch) -> _Clusters:
    """Every bin at the level of its right edge; then what of it lies below a border moves one level down."""
    border = _midpoints(levels)
    position = (border - data.low) / jnp.where(data.width > 0, data.width, 1)
    bin_ = jnp.clip(position.astype(jnp.int32), 0, BINS - 1)
    level = jnp.cumsum(jnp.zeros(BINS, jnp.int32).at[bin_].add(1))
    below, below_total = _below(border, data, bin_)

    zeros = jnp.zeros(LEVELS, jnp.float32)
    count = zeros.at[level].add(data.counts) + jnp.diff(below, prepend=0, append=0)
    total = zeros.at[level].add(data.counts * data.mean)
    total = total + jnp.diff(below_total, prepend=0, append=0)
    error = (data.mean - levels[level]) ** 2 + data.reach**2 / 3
    saved = 2 * jnp.diff(levels) * (below * border - below_total)
    return _Clusters(count, total, jnp.maximum(jnp.sum(data.counts * error) - jnp.sum(saved), 0))


def _below(border: jax.Array, data: Sketch, bin_: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many weights of each border's bin lie below it, and their sum."""
    mean, reach = data.mean[bin_], data.reach[bin_]
    left = mean - reach
    cut = jnp.clip(border, left, mean + reach)
    whole = (border >= mean).astype(jnp.float32)
    share = jnp.where(reach > 0, (cut - left) / jnp.where(reach > 0, 2 * reach, 1), whole)
    count = data.counts[bin_] * share
    return count, count * jnp.where(reach > 0, (left + cut) / 2, mean)


_clusters = jax.vmap(_clusters_of_one, (0, None))


def _step(state: _Lloyd, data: Sketch) -> _Lloyd:
    clusters = _clusters(state.levels, data)
    change = jnp.abs(state.distortion - clusters.distortion)
    settled = state.settled | (change <= TOLERANCE * clusters.distortion)
    given_up = (state.levels == 0) | (clusters.counts < 0.5)  # zero itself stays where it is
    mean = clusters.total / jnp.maximum(clusters.counts, 0.5)
    moved = jnp.sort(jnp.where(given_up, 0, mean), axis=1)
    levels = jnp.where(settled[:, None], state.levels, moved)
    return _Lloyd(levels, clusters.distortion, settled, state.iteration + 1)
