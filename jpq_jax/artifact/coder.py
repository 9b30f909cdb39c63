"""Order-0 entropy coding: symbols <-> words, under a table of integer frequencies.

The coder is an asymmetric numeral system (`constriction`, 24-bit frequencies). It knows nothing
of layers or files: a symbol is an integer, and what it stands for is the caller's business.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

PRECISION = 24  # bits of a frequency; what constriction's coders work with
TOTAL = 2**PRECISION  # what the frequencies of a table add up to

_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]: no stubs

_CHUNK = 2**20  # symbols decoded at a time: the coder returns int32, twice what is kept


def frequency_table(symbols: NDArray[np.integer]) -> NDArray[np.int64]:
    """Frequencies proportional to the counts of the symbols, in integer arithmetic only.

    Args:
      symbols: any shape, integers >= 0 and below 2**15.

    Returns:
      [1 + greatest symbol] int64, or [0] without symbols: 0 for a symbol that does not occur, at
      least 1 for one that does; they sum to exactly `TOTAL`.
    """
    counts = np.bincount(symbols.ravel())
    if not counts.size:
        return counts.astype(np.int64)
    present = counts > 0
    spare = TOTAL - np.count_nonzero(present)
    table = np.where(present, 1 + counts * spare // counts.sum(), 0)
    table[counts.argmax()] += TOTAL - table.sum()
    return table


def encode(symbols: NDArray[np.integer], table: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Codes symbols, each of a frequency >= 1 in the table, in about their ideal code length.

    Returns:
      [words] uint32, the shortest sequence that decodes to the symbols; none when the table holds
      a single symbol.
    """
    present = np.flatnonzero(table)
    if present.size < 2:
        return np.zeros(0, np.uint32)
    rank = np.zeros(table.size, np.int32)
    rank[present] = np.arange(present.size)
    coder = _stream.stack.AnsCoder()
    coder.encode_reverse(rank[symbols.ravel()], _model(table[present]))
    return coder.get_compressed()


def decode(words: NDArray[np.uint32], table: NDArray[np.int64], count: int) -> NDArray[np.int16]:
    """The inverse of `encode`: [count] symbols.

    Allocates 2 bytes a symbol, so bound `count` first: a likely symbol costs almost nothing.

    Raises:
      ValueError: if the table is not one, or the words are not what `encode` gives for as many
        symbols.
    """
    _check_table(table, count)
    present = np.flatnonzero(table).astype(np.int16)
    if present.size < 2:
        if words.size:
            raise ValueError(f"got {words.size} coded words for less than two distinct symbols")
        return np.repeat(present, count)
    coder = _stream.stack.AnsCoder(words)
    model = _model(table[present])
    symbols = np.empty(count, np.int16)
    for start in range(0, count, _CHUNK):
        chunk = symbols[start : start + _CHUNK]
        chunk[:] = present[coder.decode(model, chunk.size)]
    if not coder.is_empty():
        raise ValueError(f"the coded words hold more than {count} symbols")
    return symbols


def _check_table(table: NDArray[np.int64], count: int) -> None:
    if bool(table.size) != bool(count):
        raise ValueError(f"a frequency table of {table.size} entries for {count} symbols")
    if count and (table.min() < 0 or table[-1] == 0 or table.sum() != TOTAL):
        raise ValueError(f"frequencies are not all >= 0, ending in one > 0, with sum {TOTAL}")


def _model(frequencies: NDArray[np.int64]) -> Any:
    """The model that gives each symbol exactly its frequency, all >= 1 and at least two of them.

    constriction gives n symbols 1 each, and shares the other 2**24 - n out by the cumulative
    weights, scaled to that sum. Weights of frequency - 1 have it already, so the scale is 1 and
    every float on the way is an integer: nothing is rounded, on any machine.
    """
    return _stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)
