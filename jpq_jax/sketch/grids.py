"""Values for the weights of a sketch: any ones but 0, or multiples of a step by a pattern."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.sketch.histogram import BINS, Sketch
from jpq_jax.vocabulary import LEVELS, MAX_BITS

MOST_OCTAVES_BITS = 6  # 32 octaves of either sign: more than a float32 tells apart
_ITERATIONS = 50  # of Lloyd's
_WIDE_BINS = 64  # in which the weights' density is told
_TRIED = 96  # steps
_PER_OCTAVE = 8  # of them
_REFINED = 8  # iterations
_LEAST = 2.0**-30  # in the sketch's unit


@dataclasses.dataclass(frozen=True)
class Grid:
    """Attributes:
    name: "uniform" or "power-of-two".
    zero: whether 0 is a value, too.
    """

    name: Literal["uniform", "power-of-two"]
    zero: bool

    def pattern(self) -> np.ndarray:
        """[8, 257] ascending multiples of the step for each bit-width; unused ones 0, or infinite if 0 is no value."""
        rows = []
        for bits in range(1, MAX_BITS + 1):
            place = np.arange(2 ** (bits - 1), dtype=np.float64)
            if self.name == "power-of-two":
                side = 2.0 ** -np.minimum(place, 2 ** (MOST_OCTAVES_BITS - 1))
            else:
                side = place + (1 if self.zero else 0.5)
            unused = np.full(LEVELS - 2 * side.size, 0 if self.zero else np.inf)
            rows.append(np.sort(np.concatenate([-side, side, unused])))
        return np.array(rows, np.float32)


def fit_grid(grid: Grid, data: Sketch, bits: jax.Array) -> jax.Array:
    """[257] multiples of a step, that of least squared error among many; if it need be no power of two, then also by turns with
    the assignment.
    """
    pattern = jnp.asarray(grid.pattern())[bits - 1]
    high = jnp.max(jnp.where(data.counts > 0, jnp.abs(data.mean), 0), initial=_LEAST)
    falling = jnp.arange(_TRIED, dtype=jnp.float32)
    if grid.name == "power-of-two":  # in the sketch's unit, which is one itself
        steps = jnp.exp2(1 + jnp.ceil(jnp.log2(high)) - falling)
    else:
        largest = jnp.max(jnp.where(jnp.isfinite(pattern), pattern, 0))
        steps = 2 * high / largest * jnp.exp2(-falling / _PER_OCTAVE)

    def error(step: jax.Array) -> jax.Array:
        return jnp.sum(data.counts * (data.mean - step * _nearest(pattern, data.mean / step)) ** 2)

    def refine(_: int, step: jax.Array) -> jax.Array:
        near = _nearest(pattern, data.mean / step)
        below = jnp.sum(data.counts * near * near)
        best = jnp.sum(data.counts * near * data.mean) / jnp.where(below > 0, below, 1)
        return jnp.where(best > 0, best, step)

    step = steps[jnp.argmin(lax.map(error, steps))]
    if grid.name == "uniform":
        step = lax.fori_loop(0, _REFINED, refine, step)
    return jnp.where(jnp.isfinite(pattern), pattern * step * data.unit, pattern)


def fit_values(data: Sketch, bits: jax.Array) -> jax.Array:
    """[257] up to 2**bits values by Lloyd's algorithm, from ones placed by the cube root of the weights' density on, as is optimal for
    many (Panter-Dite); 0 is none of them, infinity fills up.

    Values at equal distances would be lost in the hole that pruning leaves around 0.
    """
    values = 2**bits
    place = jnp.arange(LEVELS, dtype=jnp.int32)
    share = (place.astype(jnp.float32) + 0.5) / values.astype(jnp.float32)
    mass = jnp.cumsum(_roots_of_density(data.counts))
    bins = jnp.minimum(jnp.searchsorted(mass, share * mass[-1]), BINS - 1)
    levels = jnp.where(place < values, data.mean[bins], jnp.inf)

    def improve(_: int, levels: jax.Array) -> jax.Array:
        slot = jnp.searchsorted(_midpoints(levels), data.mean)
        counts = jnp.zeros(LEVELS, jnp.float32).at[slot].add(data.counts)
        sums = jnp.zeros(LEVELS, jnp.float32).at[slot].add(data.counts * data.mean)
        means = sums / jnp.where(counts > 0, counts, 1)
        return jnp.sort(jnp.where(counts > 0, means, jnp.inf))

    levels = lax.fori_loop(0, _ITERATIONS, improve, levels) * data.unit
    levels = jnp.where(levels == 0, jnp.finfo(jnp.float32).tiny, levels)
    return jnp.where(jnp.any(data.counts > 0), levels, 0)  # what grows later stays 0, not infinite


def _roots_of_density(counts: jax.Array) -> jax.Array:
    """[BINS]: the cube root of the weights in each of a few wide bins, shared out among those of its bins that are not empty."""
    wide = counts.reshape(_WIDE_BINS, -1)
    filled = (wide > 0).astype(jnp.float32)
    number = jnp.maximum(jnp.sum(filled, axis=1, keepdims=True), 1)
    return (filled * jnp.cbrt(jnp.sum(wide, axis=1, keepdims=True)) / number).reshape(-1)


def _nearest(levels: jax.Array, x: jax.Array) -> jax.Array:
    return levels[jnp.searchsorted(_midpoints(levels), x)]


def _midpoints(levels: jax.Array) -> jax.Array:
    return levels[:-1] / 2 + levels[1:] / 2
