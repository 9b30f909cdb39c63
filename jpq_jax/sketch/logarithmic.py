"""What the joint projection keeps of a leaf after one pass: a histogram with bins of equal relative width."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.sharding import replicated
from jpq_jax.sketch.classes import CLASSES

OCTAVES = 24  # below 2**-24 of the largest, a weight is lost in the rounding of any sum with it
SIDE = OCTAVES << 7  # bins of one sign, 128 to the octave: at most 0.8 % wide
BINS = 2 * SIDE
_REST = 16  # mantissa bits that a bin does not look at
_CHUNK = 1 << 16  # weights that are counted at a time, so that their bins stay in a core's cache
_LANES = 16  # partial sums of a leaf that is not cut into chunks: float32 sums must not saturate


class LogSketch(NamedTuple):
    """The weights of one leaf by class, sign, exponent and leading bits of the mantissa; positive ones first.

    Bin j of a side holds the magnitudes from edge j to edge j + 1, 2**(1 - OCTAVES) to 2, in units of `unit`.
    Smaller ones are in no bin.

    Attributes:
      exponent: [] int32, of `unit`, biased: `unit` is the largest power of two that is at most max |w|, and at
        least 2**-103.
      counts: [classes, 2, SIDE] int32, weights per bin.
      mean: [classes, 2, SIDE] float32, their mean magnitude, in units of `unit`; the lower edge in an empty bin.
    """

    exponent: jax.Array
    counts: jax.Array
    mean: jax.Array


def exponent_of(w: jax.Array) -> jax.Array:
    """[] int32, the biased exponent of the largest magnitude, at least 24."""
    largest = lax.bitcast_convert_type(jnp.max(jnp.abs(w), initial=0), jnp.int32)
    # So small a leaf as that the bins reach down to the subnormals, and zero, gets a larger unit.
    return jnp.maximum(largest >> 23, OCTAVES)


def unit_of(exponent: jax.Array) -> jax.Array:
    """A sketch's unit, float32."""
    return lax.bitcast_convert_type(exponent << 23, jnp.float32)


def bin_of(w: jax.Array, exponent: jax.Array) -> jax.Array:
    """The bin of each weight, side x SIDE + j, or BINS if it is in none; the last bins also take what is beyond."""
    bits = lax.bitcast_convert_type(w, jnp.int32)
    step = ((bits & 0x7FFFFFFF) >> _REST) - ((exponent - (OCTAVES - 1)) << (23 - _REST))
    place = jnp.minimum(step, SIDE - 1) + jnp.where(bits < 0, SIDE, 0)
    return jnp.where(step < 0, BINS, place)


def edge_index(magnitude: jax.Array, side: jax.Array, mean: jax.Array) -> jax.Array:
    """How many bins of its side lie below each magnitude: 0 to SIDE.

    magnitude: float32, in units of `unit`. side: int32, 0 or 1. mean: [2, SIDE], of the bins.
    """
    step = _steps(magnitude)
    place = jnp.clip(step, 0, SIDE - 1)
    of_bin = mean.at[side, place].get(mode="promise_in_bounds")
    below = jnp.where(of_bin < magnitude, place + 1, place)
    return jnp.where(step < 0, 0, jnp.where(step >= SIDE, SIDE, below))


def bin_holding(magnitude: jax.Array) -> jax.Array:
    """The bin of a side that each magnitude lies in, in units of `unit`, or the one next to it."""
    return jnp.clip(_steps(magnitude), 0, SIDE - 1)


def _steps(magnitude: jax.Array) -> jax.Array:
    bits = lax.bitcast_convert_type(magnitude.astype(jnp.float32), jnp.int32)
    return (bits >> _REST) - ((127 - (OCTAVES - 1)) << (23 - _REST))


def edges() -> jax.Array:
    """[SIDE + 1] float32, in units of `unit`."""
    first = (127 - (OCTAVES - 1)) << (23 - _REST)
    steps = first + jnp.arange(SIDE + 1, dtype=jnp.int32)
    return lax.bitcast_convert_type(steps << _REST, jnp.float32)


def place_of(w: jax.Array, exponent: jax.Array, kind: jax.Array | None = None) -> jax.Array:
    """Where a table [classes x (BINS + 1)] has each weight: by its class, then by `bin_of`."""
    place = bin_of(w, exponent)
    return place if kind is None else place + (BINS + 1) * kind.astype(jnp.int32)


@replicated
def log_sketch(w: jax.Array, kind: jax.Array | None = None) -> LogSketch:
    """One pass over `w` [...] float32, after one for its largest magnitude.

    kind: the weights' classes, uint8, of a shape that broadcasts to theirs; all are of one if None.
    """
    exponent = exponent_of(w)
    if kind is not None:
        kind = jnp.broadcast_to(kind, w.shape)
    # A sharded leaf would be gathered, were it cut into chunks.
    histogram = _histogram_by_chunks if jax.device_count() == 1 else _histogram_by_lanes
    counts, inside = (part.reshape(-1, 2, SIDE) for part in histogram(w, kind, exponent))
    edge = edges()[None, None, :]
    share = inside / jnp.maximum(counts, 1).astype(jnp.float32)
    mean = edge[..., :-1] + (edge[..., 1:] - edge[..., :-1]) * share
    return LogSketch(exponent, counts, mean)


def _inside(w: jax.Array) -> jax.Array:
    """How far into its bin a magnitude lies, 0 to 1. Summed by itself, it keeps a mean from leaving its bin."""
    rest = lax.bitcast_convert_type(w, jnp.int32) & ((1 << _REST) - 1)
    return rest.astype(jnp.float32) * jnp.float32(2.0**-_REST)


def _classes(kind: jax.Array | None) -> int:
    return 1 if kind is None else CLASSES


def _histogram(w: jax.Array, kind: jax.Array | None, exponent: jax.Array) -> jax.Array:
    """Counts and sums of what lies inside as real and imaginary parts, since two scatters take nearly twice as long."""
    ones = lax.complex(jnp.ones_like(w), _inside(w))
    empty = jnp.zeros(_classes(kind) * (BINS + 1), jnp.complex64)
    return empty.at[place_of(w, exponent, kind)].add(ones, mode="promise_in_bounds")


def _split(histogram: jax.Array) -> tuple[jax.Array, jax.Array]:
    by_class = histogram.reshape(-1, BINS + 1)[:, :BINS]
    return by_class.real.astype(jnp.int32), by_class.imag


def _histogram_by_chunks(
    w: jax.Array, kind: jax.Array | None, exponent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    flat, kinds = w.reshape(-1), None if kind is None else kind.reshape(-1)
    chunk = _CHUNK * (1 if kind is None else 8)  # so that the chunks outweigh the bins
    size = 2 * chunk  # two at once, for two cores: a scatter runs on one
    rounds = flat.size // size

    def part(start: jax.Array) -> jax.Array:
        def cut(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(x, start, chunk)

        return _histogram(cut(flat), None if kinds is None else cut(kinds), exponent)

    def add(i: jax.Array, so_far: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        counts, inside = _split(part(i * size) + part(i * size + chunk))
        return so_far[0] + counts, so_far[1] + inside

    left = None if kinds is None else kinds[rounds * size :]
    rest = _split(_histogram(flat[rounds * size :], left, exponent))
    return lax.fori_loop(0, rounds, add, rest) if rounds else rest


def _histogram_by_lanes(
    w: jax.Array, kind: jax.Array | None, exponent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    w = jnp.atleast_1d(w)
    kind = None if kind is None else jnp.atleast_1d(kind)
    lane = lax.broadcasted_iota(jnp.int32, w.shape, w.ndim - 1) % _LANES
    place = (lane, place_of(w, exponent, kind))
    empty = jnp.zeros((_LANES, _classes(kind) * (BINS + 1)), jnp.float32)
    counts = empty.astype(jnp.int32).at[place].add(1, mode="promise_in_bounds")
    inside = empty.at[place].add(_inside(w), mode="promise_in_bounds")

    def summed(lanes: jax.Array) -> jax.Array:
        return jnp.sum(lanes, axis=0, dtype=lanes.dtype).reshape(-1, BINS + 1)[:, :BINS]

    return summed(counts), summed(inside)
