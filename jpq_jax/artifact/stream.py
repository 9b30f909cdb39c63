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


class Table:
    """Frequencies of symbols, each at least 1, `TOTAL` in all."""

    __slots__ = ("_model", "beyond", "size")

    def __init__(self, beyond: NDArray[np.int64]) -> None:
        """beyond: [symbols], of each frequency what it is beyond 1."""
        self.beyond, self.size = beyond, beyond.size
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The coder's, that gives each of at least two symbols exactly its frequency.

        constriction gives n symbols 1 each, and shares the other 2**24 - n out by the cumulative
        weights, scaled to that sum. Weights of frequency - 1 have it already, so the scale is 1 and
        every float on the way is an integer: nothing is rounded, on any machine.
        """
        if self._model is None:  # a cached_property takes a lock, which costs as much as the table
            self._model = _stream.model.Categorical(self.beyond.astype(np.float64), perfect=False)
        return self._model

    def bits(self, symbols: NDArray[np.integer]) -> float:
        """Their ideal length."""
        if symbols.size < self.size:
            return PRECISION * symbols.size - float(np.log2(self.beyond[symbols] + 1).sum())
        counts = np.bincount(symbols, minlength=self.size)
        return float(counts @ (PRECISION - np.log2(self.beyond + 1)))


def table_of(weights: NDArray[np.int64], total: int | None = None) -> Table:
    """Frequencies in proportion to weights >= 0, not all 0, in integer arithmetic only.

    Args:
      weights: [symbols], of a sum below 2**39.
      total: the sum, where it is known.
    """
    spare = TOTAL - weights.size
    beyond = weights * spare // (weights.sum() if total is None else total)
    beyond[weights.argmax()] += spare - np.add.reduce(beyond)
    return Table(beyond)


@functools.cache
def uniform(symbols: int) -> Table:
    """The table of symbols that are all alike."""
    return table_of(np.ones(symbols, np.int64))


class Writer:
    """Collects symbols, and codes them all at the end: the coder is a stack, and takes the last first."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.integer], Table]] = []
        self._bits, self._counted = 0.0, 0

    @property
    def bits(self) -> float:
        """The ideal length of what was written so far."""
        for symbols, table in self._parts[self._counted :]:
            self._bits += table.bits(symbols)
        self._counted = len(self._parts)
        return self._bits

    def write(self, symbols: NDArray[np.integer], table: Table) -> None:
        """symbols: [n] integers from 0 to table.size - 1."""
        # Held until the end, and so in as few bytes as they need.
        self._parts.append((symbols.astype(_narrowest(table.size)), table))

    def extend(self, other: Writer) -> None:
        """By all that was written there."""
        self._parts += other._parts

    def write_number(self, value: int) -> None:
        """An integer from 0 to 2**64 - 1, the smaller the shorter: its length in bits, and the bits after the first."""
        length = value.bit_length()
        if length > _LONGEST:
            raise ValueError(f"got the number {value}, expected at most {_LONGEST} bits")
        self.write(np.array([length]), _LENGTHS)
        for digits, width in _digits(length):
            self.write(np.array([value >> digits & (2**width - 1)]), uniform(2**width))

    def finish(self) -> bytes:
        """The stream. What was written is given up part by part, so that a large model is not held twice."""
        coder = _stream.stack.AnsCoder()
        while self._parts:
            symbols, table = self._parts.pop()
            if table.size > 1:
                coder.encode_reverse(symbols.astype(np.int32), table.model)
        words = coder.get_compressed()
        del coder
        return words.astype(_WORD, copy=False).tobytes().rstrip(b"\0")


def _narrowest(symbols: int) -> type[np.integer]:
    return np.uint8 if symbols <= 2**8 else np.uint16 if symbols <= 2**16 else np.int32


class Reader:
    """Gives back what a `Writer` was given, if asked with the same tables."""

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise ValueError("a coded stream that ends in a zero byte")
        words = np.frombuffer(data + bytes(-len(data) % _WORD.itemsize), _WORD)
        self._coder = _stream.stack.AnsCoder(words.astype(np.uint32))

    def copy(self) -> Reader:
        """One that goes on from here, too."""
        other = Reader(b"")
        other._coder = self._coder.clone()
        return other

    def read(self, count: int, table: Table) -> Symbols:
        """[count] symbols. Whatever the stream holds, they come: bound their number first, and `finish`."""
        if table.size < 2:
            return np.zeros(count, np.int32)
        return self._coder.decode(table.model, count)

    def read_number(self) -> int:
        length = self._coder.decode(_LENGTHS.model)
        value = 1 if length else 0
        for _, width in _digits(length):
            value = value << width | self._coder.decode(uniform(2**width).model)
        return int(value)

    def finish(self) -> None:
        """Raises ValueError if more was written than read."""
        if not self._coder.is_empty():
            raise ValueError("the coded stream holds more than was read")


def write_raw(writer: Writer, values: NDArray[np.uint64], width: int) -> None:
    """Whole numbers below 2**width, all alike: their bits from the high ones on, eight at a time and the rest last."""
    for shift, bits in _parts(width):
        part = values >> np.uint64(shift) & np.uint64(2**bits - 1)
        writer.write(part.astype(np.int32), uniform(2**bits))


def read_raw(reader: Reader, count: int, width: int) -> NDArray[np.uint64]:
    found = np.zeros(count, np.uint64)
    for _, bits in _parts(width):
        found = found << np.uint64(bits) | reader.read(count, uniform(2**bits)).astype(np.uint64)
    return found


def write_signed(writer: Writer, value: int) -> None:
    writer.write_number(2 * value if value >= 0 else -2 * value - 1)


def read_signed(reader: Reader) -> int:
    value = reader.read_number()
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


def _digits(length: int) -> list[tuple[int, int]]:
    """The bits after a number's first, from the highest: by how much each part is shifted, and its width."""
    return _parts(max(length - 1, 0))


@functools.cache
def _parts(width: int) -> list[tuple[int, int]]:
    """So many bits from the highest on: by how much each part is shifted, and its width."""
    ends = range(width, 0, -_DIGITS)
    return [(max(end - _DIGITS, 0), min(end, _DIGITS)) for end in ends]


# Of a number's length in bits: half as likely for every two bits more.
_LENGTHS = table_of(np.array([2 ** ((_LONGEST - length) // 2) for length in range(_LONGEST + 1)]))
