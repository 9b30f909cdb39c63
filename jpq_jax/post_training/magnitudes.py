"""How large the weights of a kernel are: a histogram of their half octaves, by one pass in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.leaf import parts_of

_BINS = (
    2**12
)  # of a float64's exponent and first digit: there, float32's subnormals have exponents, too
_CUT = 51  # binary digits after these
_PART = 2**17  # weights that are looked at together, as float64
_FAR = 16  # half octaves above the median from which on a few weights are outliers
_FEW = 64  # weights of which one may be an outlier


class Magnitudes(NamedTuple):
    """Of the nonzero weights of a leaf.

    Attributes:
      counts: [bins] int64, by half octaves: exponent and first digit of the mantissa.
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
        """The lower edge of the lowest bin in use; 0 if there is none."""
        lowest = int(np.argmax(self.counts > 0))
        return float(np.array(lowest << _CUT, np.int64).view(np.float64))


def bin_of(magnitude: float) -> int:
    return int(np.float64(magnitude).view(np.int64)) >> _CUT


def magnitudes_of(weights: NDArray[Any]) -> Magnitudes:
    """weights: finite."""
    counts, squares, largest = np.zeros(_BINS, np.int64), np.zeros(_BINS), 0.0
    for part in parts_of(weights, _PART):
        size = np.abs(part.astype(np.float64))
        size = size[size > 0]
        bins = size.view(np.int64) >> _CUT
        counts += np.bincount(bins, minlength=_BINS)
        squares += np.bincount(bins, size * size, minlength=_BINS)
        largest = max(largest, float(size.max(initial=0)))
    return Magnitudes(counts, squares, largest)
