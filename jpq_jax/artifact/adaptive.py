"""A table of frequencies that is learned from the symbols it has coded, and so need not be written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.stream import Reader, Symbols, Table, Writer, table_of

SYMBOL = 1024  # weight of a symbol seen, against which those of a prior are set


class Pace(NamedTuple):
    """How long runs are.

    Attributes:
      first: symbols of the shortest.
      growth: a run is as long as this part of what was seen before it.
    """

    first: int
    growth: int


STEADY = Pace(4, 4)  # about 4.5 log2 n runs for n symbols
DOUBLING = Pace(32, 1)  # about log2 n, which makes many symbols a thousandth longer


def undecided(symbols: int) -> Learner:
    """Of which each is as likely at first, as if half of one had been seen: the estimator's own prior."""
    return Learner(np.full(symbols, SYMBOL // 2))


class Learner:
    """Codes runs of symbols, each by a table of what was seen before it.

    The estimator of Krichevsky and Trofimov, 1981, with a prior of one's own, updated run by run in place of symbol by
    symbol, so that whole runs are coded at a time. They grow with what was seen.
    """

    def __init__(self, prior: NDArray[np.int64], pace: Pace = STEADY) -> None:
        """prior: [symbols], weights >= 1; `SYMBOL` is what a symbol seen counts."""
        self._pace = pace
        self.weights = prior.astype(np.int64)
        self._total = int(self.weights.sum())
        self._seen = 0

    def write(self, writer: Writer, symbols: NDArray[np.integer]) -> None:
        for start, end in self._runs(symbols.size):
            run = symbols[start:end]
            writer.write(run, self._table())
            self._learn(run)

    def read(self, reader: Reader, count: int) -> Symbols:
        symbols = np.empty(count, np.int32)
        for start, end in self._runs(count):
            symbols[start:end] = reader.read(end - start, self._table())
            self._learn(symbols[start:end])
        return symbols

    def _runs(self, count: int) -> Iterator[tuple[int, int]]:
        start = 0
        while start < count:
            end = min(start + max(self._seen // self._pace.growth, self._pace.first), count)
            yield start, end
            self._seen += end - start
            start = end

    def _table(self) -> Table:
        return table_of(self.weights, self._total)

    def _learn(self, run: NDArray[np.integer]) -> None:
        self.weights += SYMBOL * np.bincount(run, minlength=self.weights.size)
        self._total += SYMBOL * run.size
