"""How large the codes of a leaf tend to be, by its lines: what tells its weights apart for the entropy coder.

Codes are looked at as whole numbers around 0. A line of an axis is all that has one index of it: of a kernel, an input or an output,
or a row or column of a filter. The expected size of a code is taken for a product of one factor of its line in each axis. All factors
are powers of the square root of 2, so that the exponent of the product, a weight's class, is a sum of whole numbers. A line without
a nonzero is dead: its codes take nothing.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.adaptive import undecided
from jpq_jax.artifact.stream import Reader, Writer, read_signed, write_signed

CLASSES = 128
_MIDDLE = CLASSES // 2  # the class of exponent 0
_WIDEST = 2**8  # exponents of lines lie below
_SHORTEST = 4  # a line that is worth an exponent of its own, in weights
_SAMPLE = 2**20  # codes of a leaf that are looked at to choose
_LINE_BITS = 24.0  # about what the range of a line's exponents takes

Lines = NDArray[np.int32]
Exponents = tuple[Lines | None, ...]


class Activity(NamedTuple):
    """Attributes:
    base: exponent of the codes' mean size.
    lines: for each axis the exponents of its lines against that; None if they are taken to be alike.
    alive: for each axis which lines hold a nonzero, as far as it is written.
    """

    base: int
    lines: Exponents
    alive: tuple[NDArray[np.bool_], ...]


class Spread(NamedTuple):
    """How many of some lines have which exponent.

    Attributes:
      least: exponent of the first.
      counts: [exponents] int64, from the least on.
    """

    least: int
    counts: NDArray[np.int64]


class Sums(NamedTuple):
    """Attributes:
    of_lines: for each axis, [n] sums of the codes' sizes over each line.
    total: over all.
    weights: how many codes there are.
    """

    of_lines: tuple[NDArray[np.int64], ...]
    total: int
    weights: int


def sums_of(numbers: NDArray[np.integer]) -> Sums:
    """Of whole numbers of any shape."""
    size = np.abs(numbers)
    axes = range(numbers.ndim)
    of_lines = tuple(
        size.sum(axis=tuple(other for other in axes if other != axis), dtype=np.int64)
        for axis in axes
    )
    return Sums(of_lines, int(size.sum(dtype=np.int64)), numbers.size)


def activity_of(sums: Sums, axes: tuple[int, ...], coarse: bool) -> Activity:
    """That of codes that are not all 0.

    axes: whose lines are told apart.
    coarse: by factors of 2 alone.
    """
    lines, alive = [], []
    for axis, of_line in enumerate(sums.of_lines):
        factor = np.log2(np.maximum(of_line, 1) * (of_line.size / sums.total))
        exponents = 2 * np.rint(factor) if coarse else np.rint(2 * factor)
        lines.append(exponents.astype(np.int32) if axis in axes else None)
        alive.append((of_line > 0) | (axis not in axes))
    base = round(2 * math.log2(sums.total / sums.weights))
    return Activity(base, tuple(lines), tuple(alive))


def write_activity(writer: Writer, activity: Activity) -> None:
    write_signed(writer, activity.base)
    for exponents, alive in zip(activity.lines, activity.alive, strict=True):
        writer.write_number(0 if exponents is None else 1)
        if exponents is None:
            continue
        low, high = int(exponents[alive].min()), int(exponents[alive].max())
        write_signed(writer, low)
        writer.write_number(high - low)
        symbols = np.where(alive, exponents - low + 1, 0)
        undecided(high - low + 2).write(writer, symbols)


def read_activity(reader: Reader, shape: tuple[int, ...]) -> Activity:
    """Raises ValueError for exponents that no writer gives."""
    base = read_signed(reader)
    lines, alive = [], []
    for length in shape:
        told_apart = reader.read_number()
        if told_apart > 1:
            raise ValueError(f"lines of kind {told_apart}, expected 0 or 1")
        if not told_apart:
            lines.append(None)
            alive.append(np.ones(length, bool))
            continue
        low, width = read_signed(reader), reader.read_number()
        if not (low > -_WIDEST and low + width < _WIDEST):
            raise ValueError(f"exponents {low} to {low + width}, expected smaller ones")
        symbols = undecided(width + 2).read(reader, length)
        lines.append(symbols - 1 + low)
        alive.append(symbols > 0)
    if not -_WIDEST < base < _WIDEST:
        raise ValueError(f"a mean size of exponent {base}, expected a smaller one")
    return Activity(base, tuple(lines), tuple(alive))


def rows_and_columns(activity: Activity) -> tuple[Lines, Lines]:
    """Exponents of the living lines of the leaf as a matrix, the last axis its columns; the base is in the rows'."""
    told = [
        np.zeros(alive.size, np.int32) if exponents is None else exponents
        for exponents, alive in zip(activity.lines, activity.alive, strict=True)
    ]
    rows = np.full(1, activity.base, np.int32)
    for exponents in told[:-1]:
        rows = (rows[:, None] + exponents[None, :]).ravel()
    return rows[living_rows(activity)], told[-1][activity.alive[-1]]


def living_rows(activity: Activity) -> NDArray[np.bool_]:
    """Of the leaf as a matrix."""
    rows = np.ones(1, bool)
    for alive in activity.alive[:-1]:
        rows = (rows[:, None] & alive[None, :]).ravel()
    return rows


def has_classes(activity: Activity) -> bool:
    """Whether lines are told apart, so that there may be more than one class."""
    return any(exponents is not None for exponents in activity.lines)


def class_of(exponent: NDArray[np.integer]) -> NDArray[np.uint8]:
    """0 for the most active."""
    return np.clip(_MIDDLE - exponent, 0, CLASSES - 1).astype(np.uint8)


def exponent_of(kind: int) -> int:
    """The inverse of `class_of`, where it has not been clipped."""
    return _MIDDLE - kind


def spread_of(exponents: NDArray[np.integer]) -> Spread:
    """Of at least one line."""
    least = int(exponents.min())
    return Spread(least, np.bincount(exponents - least))


def weights_of_classes(*axes: Spread) -> NDArray[np.int64]:
    """[CLASSES], where lines of these axes cross: there, their exponents add up."""
    least = sum(axis.least for axis in axes)
    counts = functools.reduce(np.convolve, (axis.counts for axis in axes))
    weights = np.zeros(CLASSES, np.int64)
    np.add.at(weights, class_of(np.arange(least, least + counts.size)), counts)
    return weights


def best_activity(numbers: NDArray[np.integer]) -> Activity:
    """That of about the shortest code: axes are told apart one by one, as long as it gets shorter; then finely or coarsely.

    numbers: of one axis or more, not all 0.
    """
    sums, some = sums_of(numbers), _sample(numbers)
    every = tuple(range(numbers.ndim))

    def tried(told: dict[int, _Axis]) -> float:
        others = math.prod(length for axis, length in enumerate(numbers.shape) if axis not in told)
        return _code_length(base, [told[axis] for axis in sorted(told)], others, some)

    fine = activity_of(sums, every, coarse=False)
    base = fine.base
    left = {
        axis: _axis_of(fine, axis, some)
        for axis, length in enumerate(numbers.shape)
        if length > 1 and numbers.size >= _SHORTEST * length
    }
    told: dict[int, _Axis] = {}
    best = tried(told)
    while left:
        shorter, axis = min((tried(told | {axis: left[axis]}), axis) for axis in left)
        if shorter >= best:
            break
        best, told[axis] = shorter, left.pop(axis)
    rough = activity_of(sums, every, coarse=True)
    coarse = {axis: _axis_of(rough, axis, some) for axis in told}
    return activity_of(sums, tuple(told), coarse=bool(told) and tried(coarse) <= best)


class _Nonzeros(NamedTuple):
    """Attributes:
    place: their indices, for each axis.
    symbols: whole numbers from 0 on, one for each value that there is.
    each: how many each of them stands for.
    """

    place: tuple[NDArray[np.intp], ...]
    symbols: NDArray[np.int64]
    each: int


def _sample(numbers: NDArray[np.integer]) -> _Nonzeros:
    """Of a large leaf one code in so many, which is enough to choose by."""
    flat = numbers.reshape(-1)
    each = max(numbers.size // _SAMPLE, 1)
    found = np.flatnonzero(flat[::each]) * each
    if not found.size:
        found, each = np.flatnonzero(flat), 1
    values = flat[found].astype(np.int64)
    values -= values.min()
    rank = np.cumsum(np.bincount(values, minlength=1) > 0) - 1
    return _Nonzeros(np.unravel_index(found, numbers.shape), rank[values], each)


class _Axis(NamedTuple):
    """One whose lines are told apart.

    Attributes:
      bits: what that takes.
      of_nonzeros: exponents of the lines that they are on.
      living: of the living lines.
    """

    bits: float
    of_nonzeros: Lines
    living: Spread


def _axis_of(activity: Activity, axis: int, some: _Nonzeros) -> _Axis:
    exponents, alive = activity.lines[axis], activity.alive[axis]
    assert exponents is not None  # noqa: S101
    told = np.where(alive, exponents + _WIDEST, 0)
    bits = float(_entropy_bits(np.bincount(told))) + _LINE_BITS
    return _Axis(bits, exponents[some.place[axis]], spread_of(exponents[alive]))


def _code_length(base: int, told: list[_Axis], others: int, some: _Nonzeros) -> float:
    """About how many bits the leaf takes. Zeros are not looked at: how many there are in a class follows from the lines.

    others: how many lines there are in all combinations of the axes that are not told apart.
    """
    symbols = some.symbols
    exponent = np.full(symbols.size, base, np.int32)
    for axis in told:
        exponent += axis.of_nonzeros
    width = int(symbols.max(initial=0)) + 1
    joint = np.bincount(
        class_of(exponent).astype(np.int64) * width + symbols, minlength=CLASSES * width
    )
    joint = joint.reshape(CLASSES, width) * some.each
    all_lines = Spread(base, np.array([others], np.int64))
    weights = weights_of_classes(all_lines, *(axis.living for axis in told))
    zeros = np.maximum(weights - joint.sum(axis=1), 0)
    bits = sum(axis.bits for axis in told)
    return bits + float(_entropy_bits(np.column_stack([joint, zeros])).sum())


def _entropy_bits(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """[...] of symbols that occur so often, [..., symbols], with what it takes to learn how often (Rissanen, 1984)."""
    total = counts.sum(axis=-1)
    learned = np.maximum(np.count_nonzero(counts, axis=-1) - 1, 0) / 2
    return (total + learned) * _log2(total) - (counts * _log2(counts)).sum(axis=-1)


def _log2(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """0 for 0."""
    return np.log2(np.maximum(counts, 1))
