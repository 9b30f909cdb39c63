"""Integers <-> an entropy-coded stream: small ones in the contexts of their lines, large ones by their length in bits.

They may be replaced by their differences, which are small where integers count up, as positions do.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.adaptive import DOUBLING, SYMBOL, Learner
from jpq_jax.artifact.lossless.choice import shortest
from jpq_jax.artifact.numbers import read_numbers, write_numbers
from jpq_jax.artifact.stream import Reader, Writer, read_raw, read_signed, write_raw, write_signed

MOST = 2**11  # magnitude of an integer that has a symbol of its own
_CONTEXTS, _LENGTHS = 0, 1
_OWN = 8  # unsigned integers below have symbols of their own; others share one by length and next two bits
_LONGEST = 64
_SYMBOLS = _OWN + 4 * (_LONGEST - 3)
_PRIOR = SYMBOL // 8


def write_integers(writer: Writer, integers: NDArray[np.int64]) -> None:
    """Of any shape, in the shortest of four ways."""
    ways = []
    for is_difference, values in enumerate((integers, _differences(integers))):
        ways.append(functools.partial(_by_length, is_difference=is_difference))
        if values.min() >= -MOST and values.max() <= MOST:
            ways.append(functools.partial(_in_contexts, is_difference=is_difference))
    writer.extend(shortest(integers, ways))


def read_integers(reader: Reader, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Raises ValueError for what no writer gives."""
    way, size = reader.read_number(), int(np.prod(shape, dtype=np.int64))
    if way > 3:
        raise ValueError(f"integers of kind {way}, expected 0 to 3")
    first = np.uint64(reader.read_number()) if way & 1 else np.uint64(0)
    if way >> 1 == _LENGTHS:
        found = _unfolded(read_unsigned(reader, size)).reshape(shape)
    else:
        low, high = read_signed(reader), read_signed(reader)
        if not -MOST <= low <= 0 <= high <= MOST:
            raise ValueError(f"integers from {low} to {high}, expected up to {MOST}")
        found = read_numbers(reader, shape, low, high).astype(np.int64)
    return _sums(found, _unfolded(np.array([first]))[0]) if way & 1 else found


def write_unsigned(writer: Writer, unsigned: NDArray[np.uint64]) -> None:
    """Any, the smaller the shorter: length and first bits as they tend to be, the other bits as they are."""
    length = bit_length(unsigned)
    below = np.maximum(length - 3, 0)
    first = (unsigned >> below.astype(np.uint64)).astype(np.int64)
    symbols = np.where(length > 3, _OWN + 4 * (length - 4) + (first & 3), first)
    _learner().write(writer, symbols)
    for width in np.unique(below[below > 0]).tolist():
        write_raw(writer, unsigned[below == width], width)


def read_unsigned(reader: Reader, count: int) -> NDArray[np.uint64]:
    symbols = _learner().read(reader, count).astype(np.int64)
    is_long = symbols >= _OWN
    below = np.where(is_long, (symbols - _OWN) // 4 + 1, 0)
    first = np.where(is_long, 4 + (symbols - _OWN) % 4, symbols).astype(np.uint64)
    found = first << below.astype(np.uint64)
    for width in np.unique(below[below > 0]).tolist():
        mine = below == width
        found[mine] |= read_raw(reader, int(mine.sum()), width)
    return found


def _by_length(integers: NDArray[np.int64], *, is_difference: int) -> Writer:
    writer, values = _begun(2 * _LENGTHS + is_difference, integers)
    write_unsigned(writer, _folded(values.ravel()))
    return writer


def _in_contexts(integers: NDArray[np.int64], *, is_difference: int) -> Writer:
    writer, values = _begun(2 * _CONTEXTS + is_difference, integers)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    write_signed(writer, low)
    write_signed(writer, high)
    write_numbers(writer, values.astype(np.int16), low, high)
    return writer


def _begun(way: int, integers: NDArray[np.int64]) -> tuple[Writer, NDArray[np.int64]]:
    """And what is to be written: with differences, after the first integer itself."""
    writer = Writer()
    writer.write_number(way)
    if not way & 1:
        return writer, integers
    writer.write_number(int(_folded(integers.ravel()[:1])[0]))
    return writer, _differences(integers)


def _differences(integers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each from the one before it in C order, of the first 0; they wrap around as the sums do."""
    flat = integers.ravel()
    return np.diff(flat, prepend=flat[:1]).reshape(integers.shape)


def _sums(differences: NDArray[np.int64], first: np.int64) -> NDArray[np.int64]:
    sums = np.cumsum(differences.ravel(), dtype=np.int64)
    return (sums + first).reshape(differences.shape)


def _folded(signed: NDArray[np.int64]) -> NDArray[np.uint64]:
    """0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return (signed.view(np.uint64) << np.uint64(1)) ^ (signed >> 63).view(np.uint64)


def _unfolded(unsigned: NDArray[np.uint64]) -> NDArray[np.int64]:
    sign = (unsigned & np.uint64(1)).astype(np.int64)
    return (unsigned >> np.uint64(1)).view(np.int64) ^ -sign


def bit_length(unsigned: NDArray[np.uint64]) -> NDArray[np.int64]:
    """0 for 0. By halves, since floats do not hold 64 bits."""
    length = np.zeros(unsigned.shape, np.int64)
    left = unsigned.copy()
    for shift in (32, 16, 8, 4, 2, 1):
        is_longer = left >= np.uint64(1 << shift)
        length[is_longer] += shift
        left[is_longer] >>= np.uint64(shift)
    return length + left.astype(np.int64)


def _learner() -> Learner:
    return Learner(np.full(_SYMBOLS, _PRIOR), DOUBLING)
