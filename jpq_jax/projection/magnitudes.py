"""How large the weights of a kernel are: a histogram of their half octaves, by one pass in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.leaf import parts_of

_BINS = 2**9  # of a float32's exponent and first digit
_FIRST = -254  # half octaves, of the lowest bin
_FAR = 16  # half octaves above the median from which on a few weights are outliers
_FEW = 64  # weights of which one may be an outlier


class Magnitudes(NamedTuple):
    """Of the nonzero weights of a leaf, as float32 holds them.

    Attributes:
      counts: [bins] int64, bin k holds magnitudes from 2**((k - 254) / 2), about, to half an octave above.
      squares: [bins] float64, sums of their squares.
      largest: the largest magnitude; 0 if there is none.
    """

    counts: NDArray[np.int64]
    squares: NDArray[np.float64]
    largest: float

    def above(self, magnitude: float) -> int:
        """How many are larger, by whole bins."""
        return int(self.counts[bin_of(magnitude) + 1 :].sum())

    @property
    def energy(self) -> float:
        """The sum of squares, without those of few weights that are far larger than all others."""
        number = int(self.counts.sum())
        if not number:
            return 0.0
        median = int(np.searchsorted(np.cumsum(self.counts), number / 2))
        far = min(median + _FAR + 1, _BINS)
        is_few = self.counts[far:].sum() <= max(number // _FEW, 1)
        return float(self.squares[: far if is_few else _BINS].sum())

    @property
    def smallest(self) -> float:
        """The lower edge of the lowest bin in use, 0 for subnormals."""
        lowest = int(np.flatnonzero(self.counts)[0]) if self.counts.any() else 0
        return 2.0 ** ((lowest + _FIRST) // 2) if lowest > 1 else 0.0


def bin_of(magnitude: float) -> int:
    bits = int(np.float32(min(magnitude, float(np.finfo(np.float32).max))).view(np.uint32))
    return bits >> 22


def magnitudes_of(weights: NDArray[Any]) -> Magnitudes:
    """weights: finite."""
    counts, squares, largest = np.zeros(_BINS, np.int64), np.zeros(_BINS), 0.0
    for part in parts_of(weights):
        size = np.abs(part.astype(np.float32))
        bins = (size.view(np.uint32) >> 22)[size > 0]
        counts += np.bincount(bins, minlength=_BINS)
        wide = size[size > 0].astype(np.float64)
        squares += np.bincount(bins, wide * wide, minlength=_BINS)
        largest = max(largest, float(size.max(initial=0)))
    return Magnitudes(counts, squares, largest)
