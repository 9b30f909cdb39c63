"""Order-0 entropy decoding: words -> symbols, under a table of integer frequencies."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.stream import TOTAL, Table

_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]: no stubs

_CHUNK = 2**20  # symbols decoded at a time: the coder returns int32, twice what is kept


def decode(words: NDArray[np.uint32], table: NDArray[np.int64], count: int) -> NDArray[np.int16]:
    """[count] symbols.

    Allocates 2 bytes a symbol, so bound `count` first: a likely symbol costs almost nothing.

    Raises:
      ValueError: if the table is not one, or the words are not those of as many symbols.
    """
    _check_table(table, count)
    present = np.flatnonzero(table).astype(np.int16)
    if present.size < 2:
        if words.size:
            raise ValueError(f"got {words.size} coded words for less than two distinct symbols")
        return np.repeat(present, count)
    coder = _stream.stack.AnsCoder(words)
    model = Table(table[present] - 1).model
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
