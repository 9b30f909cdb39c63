"""Floats as sign, exponent and mantissa, whatever their dtype; subnormals like all others."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.lossless.integers import bit_length

Words = NDArray[np.unsignedinteger[Any]]


class Layout(NamedTuple):
    """Of a dtype.

    Attributes:
      word: an unsigned integer of its width.
      digits: of its mantissa.
    """

    word: np.dtype[Any]
    digits: int

    @property
    def sign(self) -> int:
        """The place of its highest bit."""
        return 8 * self.word.itemsize - 1

    @property
    def exponents(self) -> int:
        """How many there are, without those of subnormals."""
        return 2 ** (self.sign - self.digits)


LAYOUTS = {
    "float16": Layout(np.dtype(np.uint16), 10),
    "bfloat16": Layout(np.dtype(np.uint16), 7),
    "float32": Layout(np.dtype(np.uint32), 23),
    "float64": Layout(np.dtype(np.uint64), 52),
}


class Fields(NamedTuple):
    """Of nonzero floats (1 + mantissa / 2**digits) x 2**(exponent - bias), and of what is not finite.

    Attributes:
      signs: uint64, 1 for negative ones.
      exponents: int64, from 1 - digits on, below 1 for subnormals.
      mantissas: uint64, `digits` bits.
    """

    signs: NDArray[np.uint64]
    exponents: NDArray[np.int64]
    mantissas: NDArray[np.uint64]

    def half_octaves(self, layout: Layout) -> NDArray[np.int64]:
        """Exponent and first digit as one number, from 0 on."""
        first = (self.mantissas >> np.uint64(layout.digits - 1)).astype(np.int64)
        return 2 * (self.exponents + layout.digits) + first

    def digits(self, layout: Layout) -> NDArray[np.int64]:
        """Of the mantissa, up to the last that is not 0."""
        whole = self.mantissas | np.uint64(1 << layout.digits)
        lowest = whole & (~whole + np.uint64(1))
        return layout.digits - np.log2(lowest.astype(np.float64)).astype(np.int64)


def is_nonzero(words: NDArray[np.uint64], layout: Layout) -> NDArray[np.bool_]:
    return (words & ~(np.uint64(1) << np.uint64(layout.sign))) != 0


def fields_of(words: NDArray[np.uint64], layout: Layout) -> Fields:
    """words: bits of nonzero floats; of zeros the fields mean nothing."""
    signs = words >> np.uint64(layout.sign)
    size = words & ~(np.uint64(1) << np.uint64(layout.sign))
    exponents = (size >> np.uint64(layout.digits)).astype(np.int64)
    mantissas = size & np.uint64(2**layout.digits - 1)
    low = np.flatnonzero((exponents == 0) & (mantissas != 0))
    if low.size:
        shift = layout.digits + 1 - bit_length(mantissas[low])
        shifted = mantissas[low] << shift.astype(np.uint64)
        exponents[low] = 1 - shift
        mantissas[low] = shifted & np.uint64(2**layout.digits - 1)
    return Fields(signs, exponents, mantissas)


def words_of(fields: Fields, layout: Layout) -> NDArray[np.uint64]:
    """The inverse, of nonzero floats."""
    whole = fields.mantissas | np.uint64(1 << layout.digits)
    subnormal = whole >> np.clip(1 - fields.exponents, 0, layout.digits).astype(np.uint64)
    normal = np.maximum(fields.exponents, 0).astype(np.uint64) << np.uint64(layout.digits)
    size = np.where(fields.exponents < 1, subnormal, normal | fields.mantissas)
    return fields.signs << np.uint64(layout.sign) | size
