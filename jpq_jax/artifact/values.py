"""The values of a codebook <-> an entropy-coded stream; and the whole number that each code stands for there.

The numbers are in the order of the values, 0 for a pruned weight: where all values are multiples of a step, by how many steps;
else -1, -2, ... for the negative values from 0 on, and 1, 2, ... for the others. Where all but the outermost are multiples, these
outliers go on from the last multiple, one by one: a large weight must not make the others' step coarse, nor the table of symbols long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.adaptive import undecided
from jpq_jax.artifact.floats import MOST_STEPS, PARTS, multiples_of, read_floats, write_floats
from jpq_jax.artifact.stream import Reader, Writer
from jpq_jax.vocabulary import LEVELS

_FREE, _MULTIPLES, _OUTLIERS = range(3)
_FEWEST = 4  # values of which some may be outliers


class Values(NamedTuple):
    """Attributes:
    codebook: [257] float32.
    numbers: [1 + values] int16, ascending but for the 0 in front: what each code stands for.
    step: of which the values are multiples; None if of none.
    outliers: how many values at either end are free, where the others are multiples.
    """

    codebook: NDArray[np.float32]
    numbers: NDArray[np.int16]
    step: np.float32 | None
    outliers: tuple[int, int] = (0, 0)

    @property
    def low(self) -> int:
        return int(self.numbers.min())

    @property
    def high(self) -> int:
        return int(self.numbers.max())


def values_of(codebook: NDArray[np.float32], greatest: int) -> Values:
    """Those of a valid codebook, up to the last that is not +0.0, or to the greatest code in use."""
    count = int(np.flatnonzero(codebook.view(np.uint32)).max(initial=greatest))
    values = codebook[1 : 1 + count]
    found = multiples_of(values) if count > 1 else None
    if found is not None:
        return Values(codebook, np.append(0, found.numbers).astype(np.int16), found.step)
    return _with_outliers(codebook, values) or Values(
        codebook, _ranks(count, int((values < 0).sum())), None
    )


def _with_outliers(codebook: NDArray[np.float32], values: NDArray[np.float32]) -> Values | None:
    """None if what is not far out is not of multiples either."""
    wide = values.astype(np.float64)
    if values.size < _FEWEST or (wide == 0).any() or (np.diff(wide) <= 0).any():
        return None
    gap = min(np.abs(wide).min(), np.diff(wide).min())
    for parts in range(1, PARTS + 1):
        inside = np.flatnonzero(np.abs(wide) <= gap / parts * (MOST_STEPS + 0.5))
        if inside.size <= values.size // 2:
            return None
        found = multiples_of(values[inside])
        if found is not None:
            below, above = int(inside[0]), values.size - 1 - int(inside[-1])
            numbers = _extended(found.numbers, (below, above))
            return Values(
                codebook, np.append(0, numbers).astype(np.int16), found.step, (below, above)
            )
    return None


def _extended(numbers: NDArray[np.int64], outliers: tuple[int, int]) -> NDArray[np.int64]:
    """The numbers of multiples, and of outliers beyond them."""
    below, above = outliers
    low, high = min(int(numbers[0]), 0), max(int(numbers[-1]), 0)
    return np.concatenate(
        [np.arange(low - below, low), numbers, np.arange(high + 1, high + 1 + above)]
    )


def write_values(writer: Writer, values: Values) -> None:
    numbers = values.numbers[1:]
    negative, count = int((numbers < 0).sum()), numbers.size
    writer.write_number(count)
    writer.write_number(negative)
    if not count:
        return
    below, above = values.outliers
    writer.write_number(_kind_of(values))
    if values.step is None:
        write_floats(writer, values.codebook[1 : 1 + count])
        return
    if below or above:
        writer.write_number(below)
        writer.write_number(above)
        free = np.delete(values.codebook[1 : 1 + count], np.s_[below : count - above])
        write_floats(writer, free)
    write_floats(writer, np.array([values.step]))
    inner_low, inner_high = numbers[below:negative], numbers[negative : count - above]
    for side in (-inner_low[::-1], inner_high):  # of multiples from 1 on
        if side.size:
            writer.write_number(int(side[-1]) - side.size)
            taken = np.isin(np.arange(1, side[-1] + 1), side)
            undecided(2).write(writer, taken.astype(np.int32))


def read_values(reader: Reader) -> Values:
    """Raises ValueError for values that no writer gives."""
    count, negative = reader.read_number(), reader.read_number()
    if count >= LEVELS or negative > count:
        raise ValueError(f"{negative} negative of {count} values, expected up to {LEVELS - 1}")
    codebook = np.zeros(LEVELS, np.float32)
    if not count:
        return Values(codebook, np.zeros(1, np.int16), None)
    kind = reader.read_number()
    if kind == _FREE:
        codebook[1 : 1 + count] = read_floats(reader, count)
        return Values(codebook, _ranks(count, negative), None)
    if kind not in (_MULTIPLES, _OUTLIERS):
        raise ValueError(f"values of kind {kind}, expected 0 to 2")
    below, above = (reader.read_number(), reader.read_number()) if kind == _OUTLIERS else (0, 0)
    if below > negative or above > count - negative or below + above == count:
        raise ValueError(f"{below} and {above} outliers of {count} values")
    free = read_floats(reader, below + above) if kind == _OUTLIERS else codebook[:0]
    step = read_floats(reader, 1)[0]
    sizes = (negative - below, count - negative - above)
    low, high = (_read_side(reader, size) for size in sizes)
    inner = np.concatenate([-low[::-1], high])
    with np.errstate(over="ignore"):
        multiples = inner.astype(np.float32) * step
    codebook[1 : 1 + count] = np.concatenate([free[:below], multiples, free[below:]])
    numbers = np.append(0, _extended(inner, (below, above))).astype(np.int16)
    return Values(codebook, numbers, step, (below, above))


def _kind_of(values: Values) -> int:
    if values.step is None:
        return _FREE
    return _OUTLIERS if any(values.outliers) else _MULTIPLES


def _read_side(reader: Reader, size: int) -> NDArray[np.int64]:
    if not size:
        return np.zeros(0, np.int64)
    last = size + reader.read_number()
    if last > MOST_STEPS:
        raise ValueError(f"a value of {last} steps, expected up to {MOST_STEPS}")
    taken = np.flatnonzero(undecided(2).read(reader, last)) + 1
    if taken.size != size or taken[-1] != last:
        raise ValueError(f"got {taken.size} values, expected {size} that end in {last} steps")
    return taken


def _ranks(count: int, negative: int) -> NDArray[np.int16]:
    others = np.arange(count, dtype=np.int16) - np.int16(negative)
    return np.append(0, np.where(others < 0, others, others + 1)).astype(np.int16)
