"""1-D k-means on a sketch: a codebook for every bit-width 1..8, with zero as a fixed level (Yang et al., CVPR 2020)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sketch.histogram import Sketch
from jpq_jax.vocabulary import LEVELS, MAX_BITS

MAX_ITERATIONS = 100
TOLERANCE = 1e-3  # of the distortion, from one iteration to the next


class Codebooks(NamedTuple):
    """Attributes:
    levels: [8, 257] float32, ascending, for bit-widths 1..8. Zero is among them, and stands for unused levels too.
    distortion: [8] float32, squared error of the sketched nonzeros at their nearest levels.
    """

    levels: jax.Array
    distortion: jax.Array


class _Lloyd(NamedTuple):
    levels: jax.Array  # [8, 257]
    distortion: jax.Array  # [8]
    settled: jax.Array  # [8] bool
    iteration: jax.Array  # []


def fit_codebooks(data: Sketch) -> Codebooks:
    """Lloyd's algorithm for all bit-widths at once; a local minimum of

        sum_i min_k (w_i - c_k)^2   over 2**b values c_1, c_2, ... beside the fixed c_0 = 0

    from equally spaced values between the smallest and the largest nonzero weight, until the distortion
    changes by less than 1e-3 of itself, at most 100 iterations. A value that no weight is nearest to is
    given up, as published. The sketch's bins are the points, each as heavy as its count.
    """
    start = _Lloyd(
        levels=_equally_spaced(data),
        distortion=jnp.full(MAX_BITS, jnp.inf),
        settled=jnp.zeros(MAX_BITS, bool),
        iteration=jnp.int32(0),
    )
    result = lax.while_loop(
        lambda s: ~jnp.all(s.settled) & (s.iteration < MAX_ITERATIONS),
        lambda s: _step(s, data),
        start,
    )
    return Codebooks(result.levels, _distortion(result.levels, data))


def nearest_level(levels: jax.Array, w: jax.Array) -> jax.Array:
    """Index of the level nearest to each weight; halfway, the lower. levels: [257] ascending."""
    return jnp.searchsorted(_midpoints(levels), w, method="scan")


def _midpoints(levels: jax.Array) -> jax.Array:
    return levels[..., :-1] / 2 + levels[..., 1:] / 2


def _equally_spaced(data: Sketch) -> jax.Array:
    values = 2 ** jnp.arange(1, MAX_BITS + 1)[:, None]
    place = jnp.arange(LEVELS)[None, :]
    share = place.astype(jnp.float32) / (values - 1).astype(jnp.float32)
    spaced = data.low * (1 - share) + data.high * share
    return jnp.sort(jnp.where(place < values, spaced, 0), axis=1)


def _errors(levels: jax.Array, data: Sketch) -> tuple[jax.Array, jax.Array]:
    label = jax.vmap(nearest_level, (0, None))(levels, data.mean)
    error = data.mean[None, :] - jnp.take_along_axis(levels, label, axis=1)
    return label, jnp.sum(data.count[None, :] * error**2, axis=1)


def _distortion(levels: jax.Array, data: Sketch) -> jax.Array:
    return _errors(levels, data)[1]


def _step(state: _Lloyd, data: Sketch) -> _Lloyd:
    label, distortion = _errors(state.levels, data)
    change = jnp.abs(state.distortion - distortion)
    settled = state.settled | (change < TOLERANCE * distortion) | (distortion == 0)

    row = jnp.arange(MAX_BITS)[:, None]
    empty = jnp.zeros_like(state.levels)
    count = empty.at[row, label].add(data.count[None, :])
    total = empty.at[row, label].add((data.count * data.mean)[None, :])
    given_up = (state.levels == 0) | (count == 0)  # zero itself stays where it is
    moved = jnp.sort(jnp.where(given_up, 0, total / jnp.maximum(count, 1)), axis=1)
    levels = jnp.where(settled[:, None], state.levels, moved)
    return _Lloyd(levels, distortion, settled, state.iteration + 1)
