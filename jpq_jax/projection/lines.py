"""What whole numbers cost a codec that tells the more active lines of a leaf from the others, and the cheapest numbers at a price of a bit.

The length of an adaptive code whose table depends on a number's class: how large numbers tend to be on its lines, one of each axis (all
that has one index of it). The same model as `artifact.activity` has, in JAX; the codec has the last word on bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

REACH = 128  # numbers beyond cost as much as this
MOST = 2**11  # the largest number there may be
CLASSES = 64
_TOP = 20  # half octaves: numbers of class 0 have a mean size of 2**(_TOP / 2)
NUMBERS = 2 * REACH + 1  # that have prices of their own
_PRIOR = 64.0  # numbers that the expectation of a class counts as much as
_SHORTEST = 4  # a line that is told apart, in weights
_LINE_BITS = 24.0  # about what an axis takes besides its lines' entropy
BALANCE = 3.0  # of uniform levels whose error and rate are in balance, by the root of the multiplier: about sqrt(6 / ln 2)


class Lines(NamedTuple):
    """Attributes:
    base: [] int32, half octaves of the numbers' mean size.
    exponents: for each axis [lines] int32, half octaves by which its lines exceed that.
    """

    base: jax.Array
    exponents: tuple[jax.Array, ...]


def lines_of(numbers: jax.Array) -> Lines:
    """How active each line is, as if it had one nonzero more, and as many as an average one has in all."""
    size = jnp.abs(numbers).astype(jnp.float32)
    axes = range(numbers.ndim)
    of_lines = [jnp.sum(size, axis=[other for other in axes if other != axis]) for axis in axes]
    return lines_of_sums(of_lines, jnp.sum(size))


def lines_of_sums(of_lines: Sequence[jax.Array], total: jax.Array) -> Lines:
    """The same of the sums of the numbers' sizes over the lines of each axis, and over all."""
    shape = [sums.size for sums in of_lines]
    exponents = [
        _half_octaves((sums + 1) / (total / sums.size + 1))
        if _is_told_apart(sums.size, shape)
        else jnp.zeros(sums.size, jnp.int32)
        for sums in of_lines
    ]
    return Lines(_half_octaves((total + 1) / max(math.prod(shape), 1)), tuple(exponents))


def _is_told_apart(length: int, shape: Sequence[int]) -> bool:
    """Whether lines of an axis of this length are worth an exponent of their own."""
    return length > 1 and math.prod(shape) >= _SHORTEST * length


def _half_octaves(ratio: jax.Array) -> jax.Array:
    return jnp.round(2 * jnp.log2(ratio)).astype(jnp.int32)


def classes_of(lines: Lines) -> jax.Array:
    """[...] int32, 0 the most active."""
    axes = len(lines.exponents)
    exponent = lines.base
    for axis, of_axis in enumerate(lines.exponents):
        exponent = exponent + jnp.expand_dims(of_axis, [a for a in range(axes) if a != axis])
    return class_of(exponent)


def class_of(exponent: jax.Array) -> jax.Array:
    """Of the sum of the exponents of base and lines."""
    return jnp.clip(_TOP - exponent, 0, CLASSES - 1)


def counts_of(numbers: jax.Array, kinds: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """[CLASSES, NUMBERS] float32, how many of each class there are of each number.

    counted: bools that broadcast to the numbers' shape; None for all.
    """
    times = 1 if counted is None else jnp.broadcast_to(counted, numbers.shape).astype(jnp.int32)
    counts = jnp.zeros(CLASSES * NUMBERS, jnp.int32).at[_place(numbers, kinds)].add(times)
    return counts.reshape(CLASSES, NUMBERS).astype(jnp.float32)


def prices_of(counts: jax.Array) -> jax.Array:
    """[CLASSES, NUMBERS] float32, bits of each number in each class, as learned from these."""
    _, weights = _learned(counts)
    return jnp.log2(jnp.sum(weights, axis=1, keepdims=True)) - jnp.log2(weights)


def learned_bits(counts: jax.Array) -> jax.Array:
    """Of a code that learns its tables as it goes: [] float32."""
    before, after = _learned(counts)

    def nats(weights: jax.Array) -> jax.Array:
        gammas = lax.lgamma(weights)
        return lax.lgamma(jnp.sum(weights, axis=1)) - jnp.sum(gammas, axis=1)

    return jnp.sum(nats(after) - nats(before)) / np.float32(np.log(2))


def lines_bits(leaves: Sequence[Lines]) -> jax.Array:
    """Of all their exponents, about, which the codec writes: [] float32."""
    axes = []
    for lines in leaves:
        shape = [exponents.size for exponents in lines.exponents]
        axes += [e for e in lines.exponents if _is_told_apart(e.size, shape)]
    if not axes:
        return jnp.float32(0)
    place = jnp.clip(jnp.concatenate(axes), -_TOP, _TOP) + _TOP
    axis_of = np.repeat(np.arange(len(axes)), [exponents.size for exponents in axes])
    lengths = np.array([exponents.size for exponents in axes], np.float32)
    counts = jnp.zeros((len(axes), 2 * _TOP + 1), jnp.float32).at[axis_of, place].add(1)
    of_line = jnp.log2(lengths[:, None] / jnp.maximum(counts, 1))
    entropy = jnp.sum(counts * of_line, axis=1)
    return jnp.sum(jnp.where(jnp.max(counts, axis=1) < lengths, entropy + _LINE_BITS, 0))


def _learned(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is known of each class before and after it is coded, in numbers of each size. Both [CLASSES, NUMBERS]."""

    def learn(seen: jax.Array, of_class: tuple[jax.Array, jax.Array]) -> tuple:
        count, expected = of_class
        known = jnp.sum(seen)
        told = expected / 2 + seen * (_PRIOR / 2) / jnp.maximum(known, 1)
        before = jnp.where(known > 0, told, expected)
        after = before + count
        return jnp.where(jnp.sum(count) > 0, after, seen), (before, after)

    each = (counts, jnp.asarray(_EXPECTED))
    return lax.scan(learn, jnp.zeros(NUMBERS, jnp.float32), each)[1]


def _place(numbers: jax.Array, kinds: jax.Array) -> jax.Array:
    inside = jnp.clip(numbers.astype(jnp.int32), -REACH, REACH)
    return kinds * NUMBERS + inside + REACH


def _expected() -> np.ndarray:
    """[CLASSES, NUMBERS], falling by the same factor from each size to the next, with the class's mean size."""
    mean = np.exp2((_TOP - np.arange(CLASSES)) / 2)[:, None]
    factor = (np.sqrt(1 + mean**2) - 1) / mean
    falling = factor ** np.abs(np.arange(-REACH, REACH + 1)) * (1 - factor) / (1 + factor)
    return (_PRIOR * falling + 2.0**-10).astype(np.float32)


_EXPECTED = _expected()


def nearest(x: jax.Array, most: int = MOST) -> jax.Array:
    return jnp.clip(jnp.round(x), -most, most).astype(jnp.int16)


def cheapest(
    w: jax.Array,
    step: jax.Array,
    kinds: jax.Array,
    prices: jax.Array,
    multiplier: jax.Array,
    most: int = MOST,
) -> jax.Array:
    """Of the nearest number, the next one toward 0, and 0: that of least error plus price. [...] int16, up to `most`."""
    near = nearest(w / step, most)
    price = multiplier * prices

    def cost(number: jax.Array) -> jax.Array:
        return (w - step * number.astype(jnp.float32)) ** 2 + taken(number, kinds, price)

    best, least = near, cost(near)
    for number in (near - jnp.sign(near), jnp.zeros_like(near)):
        other = cost(number)
        best, least = jnp.where(other < least, number, best), jnp.minimum(other, least)
    return best


def taken(numbers: jax.Array, kinds: jax.Array, prices: jax.Array) -> jax.Array:
    """[...] float32, the price of each number."""
    return prices.ravel().at[_place(numbers, kinds)].get(mode="promise_in_bounds")
