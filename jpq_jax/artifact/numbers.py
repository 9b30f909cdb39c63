"""A leaf's whole numbers <-> an entropy-coded stream, class by class."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.activity import (
    Activity,
    best_activity,
    class_of,
    exponent_of,
    has_classes,
    read_activity,
    rows_and_columns,
    spread_of,
    weights_of_classes,
    write_activity,
)
from jpq_jax.artifact.adaptive import DOUBLING, STEADY, SYMBOL, Learner, Pace
from jpq_jax.artifact.living import Living
from jpq_jax.artifact.stream import Reader, Writer

SLAB = 2**20  # weights that are looked at together
_PRIOR = 64  # symbols that the expectation of a class counts as much as
_POINT = 30  # binary digits of fixed-point fractions

_NONE, _FEW, _MANY = range(3)  # kinds of a leaf's numbers: all 0, few runs at any pace, or many
_PACES = {_FEW: STEADY, _MANY: DOUBLING}
_MANY_NONZEROS = 2**12  # below, a shorter file counts for more than time


def write_numbers(writer: Writer, numbers: NDArray[np.integer], low: int, high: int) -> None:
    """numbers: any shape, from low to high."""
    numbers = np.atleast_1d(numbers)
    nonzeros = np.count_nonzero(numbers)
    if not nonzeros:
        writer.write_number(_NONE)
        return
    activity = best_activity(numbers)
    kind = _MANY if nonzeros >= _MANY_NONZEROS and has_classes(activity) else _FEW
    writer.write_number(kind)
    write_activity(writer, activity)
    living = Living(numbers, activity)
    coder = _ClassCoder(activity, low, high, _PACES[kind])
    for start, end in living.slabs(SLAB):
        order, bounds = coder.order(start, end)
        symbols = living.get(start, end)[order].astype(np.int32) - low
        for learner, first, last in coder.learners(bounds):
            learner.write(writer, symbols[first:last])


def read_numbers(reader: Reader, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int16]:
    """Raises ValueError for what no writer gives."""
    kind = reader.read_number()
    numbers = np.zeros(shape or 1, np.int16)
    if kind == _NONE:
        return numbers.reshape(shape)
    if kind not in _PACES:
        raise ValueError(f"numbers of kind {kind}, expected 0, 1 or 2")
    if not numbers.size:
        raise ValueError("numbers of an empty leaf")
    activity = read_activity(reader, numbers.shape)
    living = Living(numbers, activity)
    coder = _ClassCoder(activity, low, high, _PACES[kind])
    for start, end in living.slabs(SLAB):
        order, bounds = coder.order(start, end)
        found = np.empty(order.size, np.int16)
        for learner, first, last in coder.learners(bounds):
            found[order[first:last]] = learner.read(reader, last - first).astype(np.int16)
        found += low
        living.set(start, end, found)
    return numbers.reshape(shape)


class _ClassCoder:
    """Goes through the living weights slab by slab, most active classes first, with a learner for each class."""

    def __init__(self, activity: Activity, low: int, high: int, pace: Pace) -> None:
        # Sums of a few exponents, each of some hundreds.
        self.rows, self.columns = (x.astype(np.int16) for x in rows_and_columns(activity))
        self._range, self._pace = (low, high), pace
        self._learners: dict[int, Learner] = {}

    def order(self, start: int, end: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Of a slab's weights by class, and where each class starts and the last ends."""
        rows = self.rows[start:end]
        classes = class_of(rows[:, None] + self.columns[None, :]).ravel()
        counts = weights_of_classes(spread_of(rows), spread_of(self.columns))
        return np.argsort(classes, kind="stable"), np.append(0, np.cumsum(counts))

    def learners(self, bounds: NDArray[np.int64]) -> Iterator[tuple[Learner, int, int]]:
        """(learner, first, last) of each class in the slab. A new class expects what the one before it has seen, too."""
        before = None
        for kind in np.flatnonzero(np.diff(bounds)).tolist():
            if kind not in self._learners:
                prior = _expected(exponent_of(kind), *self._range)
                if before is not None:
                    seen = before.weights
                    prior = prior // 2 + seen * (_PRIOR * SYMBOL // 2) // seen.sum() + 1
                self._learners[kind] = Learner(prior, self._pace)
            before = self._learners[kind]
            yield before, int(bounds[kind]), int(bounds[kind + 1])


@functools.lru_cache(maxsize=1024)
def _expected(exponent: int, low: int, high: int) -> NDArray[np.int64]:
    """Weights of low..high, falling by the same factor from each to the next, with a mean size of 2**(exponent / 2).

    In fixed point, by Python's integers, so that every machine has the same.
    """
    one = 1 << _POINT
    square = (one << exponent) if exponent >= 0 else (one >> -exponent)
    root = math.isqrt((one + square) << _POINT)  # of 1 + square
    factor = ((root - one) << _POINT) // math.isqrt(max(square, 1) << _POINT)
    falling = [(_PRIOR * SYMBOL * (one - factor) << _POINT) // (one + factor)]
    for _ in range(max(-low, high)):
        falling.append(falling[-1] * factor >> _POINT)
    weights = [max(falling[abs(number)] >> _POINT, 1) for number in range(low, high + 1)]
    return np.array(weights, np.int64)
