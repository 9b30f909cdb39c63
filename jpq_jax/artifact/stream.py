"""Symbols <-> bytes: one entropy-coded stream, written and read in the same order.

Every symbol is coded under a table of integer frequencies, which the reader must have too: from what it read before, never from
floats. The coder is an asymmetric numeral system (`constriction`, 24-bit frequencies), which knows nothing of leaves or files.
"""

from __future__ import annotations

import functools
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

PRECISION = 24  # bits of a frequency; what constriction's coders work with
TOTAL = 2**PRECISION  # what the frequencies of a table add up to

_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]: no stubs
_WORD = np.dtype("<u4")
_DIGITS = 8  # bits of a number that are coded at a time
_LONGEST = 64  # bits of a number

Symbols = NDArray[np.int32]
Table = NDArray[np.int64]


def table_of(weights: NDArray[np.int64]) -> Table:
    """Frequencies in proportion to weights >= 0, not all 0, each at least 1, in integer arithmetic only.

    weights: [symbols], of a sum below 2**39.
    """
    spare = TOTAL - weights.size
    table = 1 + weights * spare // weights.sum()
    table[weights.argmax()] += TOTAL - table.sum()
    return table


@functools.cache
def uniform(symbols: int) -> Table:
    """The table of symbols that are all alike."""
    return table_of(np.ones(symbols, np.int64))


class Writer:
    """Collects symbols, and codes them all at the end: the coder is a stack, and takes the last first."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.integer], Table]] = []
        self.bits = 0.0
        """The ideal length of what was written so far."""

    def write(self, symbols: NDArray[np.integer], table: Table) -> None:
        """symbols: [n] integers from 0 to table.size - 1."""
        # Held until the end, and so in as few bytes as they need.
        self._parts.append((np.ascontiguousarray(symbols, _narrowest(table.size)), table))
        counts = np.bincount(symbols, minlength=table.size)
        self.bits += float(counts @ (PRECISION - np.log2(table)))

    def write_number(self, value: int) -> None:
        """An integer from 0 to 2**64 - 1, the smaller the shorter: its length in bits, and the bits after the first."""
        length = value.bit_length()
        if length > _LONGEST:
            raise ValueError(f"got the number {value}, expected at most {_LONGEST} bits")
        self.write(np.array([length]), _LENGTHS)
        for digits, width in _digits(length):
            self.write(np.array([value >> digits & (2**width - 1)]), uniform(2**width))

    def finish(self) -> bytes:
        coder = _stream.stack.AnsCoder()
        for symbols, table in reversed(self._parts):
            if table.size > 1:
                coder.encode_reverse(symbols.astype(np.int32), model_of(table))
        return coder.get_compressed().astype(_WORD).tobytes().rstrip(b"\0")


def _narrowest(symbols: int) -> type[np.integer]:
    return np.uint8 if symbols <= 2**8 else np.uint16 if symbols <= 2**16 else np.int32


class Reader:
    """Gives back what a `Writer` was given, if asked with the same tables."""

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise ValueError("a coded stream that ends in a zero byte")
        words = np.frombuffer(data + bytes(-len(data) % _WORD.itemsize), _WORD)
        self._coder = _stream.stack.AnsCoder(words.astype(np.uint32))

    def read(self, count: int, table: Table) -> Symbols:
        """[count] symbols. Whatever the stream holds, they come: bound their number first, and `finish`."""
        if table.size < 2:
            return np.zeros(count, np.int32)
        return self._coder.decode(model_of(table), count)

    def read_number(self) -> int:
        length = int(self.read(1, _LENGTHS)[0])
        value = 1 if length else 0
        for _, width in _digits(length):
            value = value << width | int(self.read(1, uniform(2**width))[0])
        return value

    def finish(self) -> None:
        """Raises ValueError if more was written than read."""
        if not self._coder.is_empty():
            raise ValueError("the coded stream holds more than was read")


def write_signed(writer: Writer, value: int) -> None:
    writer.write_number(2 * value if value >= 0 else -2 * value - 1)


def read_signed(reader: Reader) -> int:
    value = reader.read_number()
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


def _digits(length: int) -> list[tuple[int, int]]:
    """The bits after a number's first, from the highest: by how much each part is shifted, and its width."""
    ends = range(max(length - 1, 0), 0, -_DIGITS)
    return [(max(end - _DIGITS, 0), min(end, _DIGITS)) for end in ends]


def model_of(table: Table) -> Any:
    """The model that gives each symbol exactly its frequency, all >= 1 and at least two of them.

    constriction gives n symbols 1 each, and shares the other 2**24 - n out by the cumulative
    weights, scaled to that sum. Weights of frequency - 1 have it already, so the scale is 1 and
    every float on the way is an integer: nothing is rounded, on any machine.
    """
    return _stream.model.Categorical((table - 1).astype(np.float64), perfect=False)


# Of a number's length in bits: half as likely for every two bits more.
_LENGTHS = table_of(np.array([2 ** ((_LONGEST - length) // 2) for length in range(_LONGEST + 1)]))
