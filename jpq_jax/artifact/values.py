"""The values of a codebook <-> an entropy-coded stream; and the whole number that each code stands for there.

The numbers are in the order of the values, 0 for a pruned weight: where all values are multiples of a step, by how many steps;
else -1, -2, ... for the negative values from 0 on, and 1, 2, ... for the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.adaptive import undecided
from jpq_jax.artifact.floats import MOST_STEPS, multiples_of, read_floats, write_floats
from jpq_jax.artifact.stream import Reader, Writer
from jpq_jax.vocabulary import LEVELS


class Values(NamedTuple):
    """Attributes:
    codebook: [257] float32.
    numbers: [1 + values] int16, ascending but for the 0 in front: what each code stands for.
    step: of which the values are multiples; None if of none.
    """

    codebook: NDArray[np.float32]
    numbers: NDArray[np.int16]
    step: np.float32 | None

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
    return Values(codebook, _ranks(count, int((values < 0).sum())), None)


def write_values(writer: Writer, values: Values) -> None:
    numbers = values.numbers[1:]
    negative, count = int((numbers < 0).sum()), numbers.size
    writer.write_number(count)
    writer.write_number(negative)
    if not count:
        return
    writer.write_number(int(values.step is not None))
    if values.step is None:
        write_floats(writer, values.codebook[1 : 1 + count])
        return
    write_floats(writer, np.array([values.step]))
    for side in (-numbers[:negative][::-1], numbers[negative:]):  # of multiples from 1 on
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
    if kind == 0:
        codebook[1 : 1 + count] = read_floats(reader, count)
        return Values(codebook, _ranks(count, negative), None)
    if kind != 1:
        raise ValueError(f"values of kind {kind}, expected 0 or 1")
    step = read_floats(reader, 1)[0]
    sides = [_read_side(reader, size) for size in (negative, count - negative)]
    numbers = np.concatenate([-sides[0][::-1], sides[1]])
    with np.errstate(over="ignore"):
        codebook[1 : 1 + count] = numbers.astype(np.float32) * step
    return Values(codebook, np.append(0, numbers).astype(np.int16), step)


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
