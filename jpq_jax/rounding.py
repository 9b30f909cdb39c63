"""Stored leaves, such as biases and norms, rounded to what a bit is worth: they count little in a file, and much in a model.

    min over v'   sum_i h_i (v_i - v'_i)^2 + multiplier x bits(v')

over multiples of a step, and over numbers of d binary digits after the first. An error counts relative to the leaf: to
each number of one that has only positive ones (variances, scales), else to the root of their mean square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGITS = 23  # of a float32 after the first
_MOST_STEPS = 2**11  # from 0 to a multiple
_STEPS = 2.0 ** np.arange(-2, 2.5, 0.5)  # tried, by that at which error and rate are in balance
_BALANCE = 3.0  # see `projection.lines`

Floats = NDArray[np.float32]


def rounded(leaf: NDArray[Any], weight: float, multiplier: float) -> NDArray[Any]:
    """The leaf of least error plus price, in its own dtype; as it is where a number is not finite.

    Args:
      leaf: floats that float32 holds.
      weight: of a squared error as large as the leaf's own square, for each number.
      multiplier: price of a bit.
    """
    floats = leaf.astype(np.float32)
    if not floats.any() or not np.isfinite(floats).all():
        return leaf
    wide = floats.astype(np.float64)
    square = wide**2 if (wide > 0).all() else np.full_like(wide, (wide**2).mean())
    h = weight / np.maximum(square, np.finfo(np.float64).tiny)
    best, least = floats, multiplier * 32 * floats.size
    for tried, bits in (*_multiples(wide, h, multiplier), *_short(floats)):
        cost = float((h * (wide - tried) ** 2).sum()) + multiplier * bits
        if cost < least:
            best, least = tried, cost
    return best.astype(leaf.dtype)


def _multiples(
    wide: NDArray[np.float64], h: NDArray[np.float64], multiplier: float
) -> list[tuple[Floats, float]]:
    """Of some steps; with the step itself, a bfloat16, and how frequent each multiple is."""
    balance = _BALANCE * np.sqrt(multiplier / h.mean())
    found = []
    for step in balance * _STEPS:
        short = np.float32(step).view(np.uint32) & np.uint32(0xFFFF0000)
        exact = short.view(np.float32)
        if not 0 < exact < np.inf:
            continue
        numbers = np.rint(wide / exact) + 0.0  # no negative zeros
        if np.abs(numbers).max() <= _MOST_STEPS:
            values = numbers.astype(np.float32) * exact
            found.append((values, _entropy_bits(numbers) + 16))
    return found


def _short(floats: Floats) -> list[tuple[Floats, float]]:
    """Of every number of digits, to the nearest."""
    words = floats.view(np.uint32).astype(np.int64)
    sign, size = words & 1 << 31, words & (1 << 31) - 1
    some = np.count_nonzero(size)
    signs = some if sign.any() else 0
    found = []
    for digits in range(_DIGITS + 1):
        cut = _DIGITS - digits
        nearest = size + (1 << cut >> 1) >> cut << cut
        values = np.where(nearest, sign | nearest, 0).astype(np.uint32).view(np.float32)
        if np.isfinite(values).all():
            bits = _entropy_bits(nearest >> _DIGITS) + signs + digits * some
            found.append((values, bits))
    return found


def _entropy_bits(symbols: NDArray[Any]) -> float:
    """With what it takes to learn how frequent each symbol is (Rissanen, 1984)."""
    counts = np.unique(symbols, return_counts=True)[1].astype(np.float64)
    return float(counts @ np.log2(symbols.size / counts) + counts.size / 2 * np.log2(symbols.size))
