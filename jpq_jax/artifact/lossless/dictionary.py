"""Arrays of few distinct elements <-> an entropy-coded stream: the elements' bits once, and which one stands where."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.adaptive import DOUBLING, SYMBOL, Learner
from jpq_jax.artifact.lossless.choice import shortest
from jpq_jax.artifact.lossless.integers import read_unsigned, write_unsigned
from jpq_jax.artifact.numbers import read_numbers, write_numbers
from jpq_jax.artifact.stream import Reader, Writer, read_raw, write_raw

MOST = 256  # distinct elements
_PLAIN, _RUNS, _CONTEXTS = range(3)
_SAMPLE = 2**12
_PRIOR = SYMBOL // 8

Words = NDArray[np.integer[Any]]


def distinct_of(words: Words) -> Words | None:
    """Ascending; None for more than `MOST`."""
    flat = words.ravel()
    if np.unique(flat[:: max(flat.size // _SAMPLE, 1)]).size > MOST:
        return None
    found = np.unique(flat)
    return found if found.size <= MOST else None


def write_dictionary(writer: Writer, words: Words, distinct: Words) -> None:
    """In the shortest of three ways. words: any shape; distinct: all there are of them, ascending."""
    width = 8 * words.dtype.itemsize
    writer.write_number(distinct.size)
    write_raw(writer, distinct.astype(np.int64).view(np.uint64), width)
    places = np.searchsorted(distinct, words.ravel()).astype(np.int16).reshape(words.shape)
    common = int(np.bincount(places.ravel()).argmax())
    ways = [
        functools.partial(_plain, count=distinct.size),
        functools.partial(_runs, count=distinct.size),
        functools.partial(_in_contexts, common=common, count=distinct.size),
    ]
    writer.extend(shortest(places, ways))


def read_dictionary(reader: Reader, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Words:
    """Raises ValueError for what no writer gives."""
    count, size = reader.read_number(), int(np.prod(shape, dtype=np.int64))
    if not 0 < count <= MOST:
        raise ValueError(f"{count} distinct elements, expected 1 to {MOST}")
    distinct = read_raw(reader, count, 8 * dtype.itemsize).astype(dtype)
    way = reader.read_number()
    if way == _PLAIN:
        places = _learner(count).read(reader, size)
    elif way == _RUNS:
        places = _read_runs(reader, count, size)
    elif way == _CONTEXTS:
        common = reader.read_number()
        if common >= count:
            raise ValueError(f"element {common}, expected one of {count}")
        places = read_numbers(reader, shape, -common, count - 1 - common).ravel() + common
    else:
        raise ValueError(f"a dictionary of kind {way}, expected 0 to 2")
    return distinct[places].reshape(shape)


def _plain(places: NDArray[np.int16], *, count: int) -> Writer:
    writer = Writer()
    writer.write_number(_PLAIN)
    _learner(count).write(writer, places.ravel())
    return writer


def _runs(places: NDArray[np.int16], *, count: int) -> Writer:
    """Which element, and how often one after the other."""
    writer = Writer()
    writer.write_number(_RUNS)
    places = places.ravel()
    starts = np.flatnonzero(np.diff(places, prepend=np.int16(-1)))
    lengths = np.diff(starts, append=places.size)
    writer.write_number(starts.size)
    _learner(count).write(writer, places[starts])
    write_unsigned(writer, (lengths - 1).astype(np.uint64))
    return writer


def _read_runs(reader: Reader, count: int, size: int) -> NDArray[np.int32]:
    number = reader.read_number()
    if number > size:
        raise ValueError(f"{number} runs of {size} elements")
    places = _learner(count).read(reader, number)
    lengths = read_unsigned(reader, number)
    if (lengths >= max(size, 1)).any() or int(lengths.sum()) + number != size:
        raise ValueError(f"runs that are not of {size} elements")
    return np.repeat(places, lengths.astype(np.int64) + 1)


def _in_contexts(places: NDArray[np.int16], *, common: int, count: int) -> Writer:
    writer = Writer()
    writer.write_number(_CONTEXTS)
    writer.write_number(common)
    write_numbers(writer, places - np.int16(common), -common, count - 1 - common)
    return writer


def _learner(count: int) -> Learner:
    return Learner(np.full(count, _PRIOR), DOUBLING)
