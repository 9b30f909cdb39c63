"""Arrays of any dtype <-> an entropy-coded stream, to the bit: every NaN's payload, every negative zero.

Few distinct elements are written as a dictionary, integers by their size or that of their differences, floats by their exponents.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.lossless import dictionary, floats, integers
from jpq_jax.artifact.lossless.choice import Way, beginning, shortest
from jpq_jax.artifact.lossless.fields import LAYOUTS
from jpq_jax.artifact.stream import Reader, Writer

_DICTIONARY, _INTEGERS, _FLOATS = range(3)
_PARTS = {
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
    "complex32": np.dtype(np.float16),
    "bcomplex32": np.dtype(ml_dtypes.bfloat16),
}
_LARGEST = 8  # bytes of an element
_FEW = 2  # distinct elements, such as the two zeros, for which nothing beats a dictionary


def is_shorter(array: NDArray[Any]) -> bool:
    """Whether `write_array` takes fewer bits than the array's own; of a large one, whether its beginning does."""
    return estimated_bytes(array) < array.nbytes


def estimated_bytes(array: NDArray[Any]) -> float:
    """What an array takes in a file, of a large one by its beginning."""
    if not array.size or (array.itemsize > _LARGEST and array.dtype.name not in _PARTS):
        return array.nbytes
    some = np.ascontiguousarray(beginning(array))
    writer = Writer()
    write_array(writer, some)
    return min(writer.bits / 8 * (array.size / some.size), array.nbytes)


def write_array(writer: Writer, array: NDArray[Any]) -> None:
    """array: not empty, in native byte order, of a dtype of at most 8 bytes or complex."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    part = _PARTS.get(array.dtype.name)
    if part is not None:
        array = array.reshape(*array.shape, 1).view(part)
    writer.extend(shortest(array, _ways(array)))


def read_array(reader: Reader, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Raises ValueError for what no writer gives."""
    part = _PARTS.get(dtype.name)
    if part is not None:
        return read_array(reader, (*shape, 2), part).view(dtype).reshape(shape)
    kind = reader.read_number()
    layout = LAYOUTS.get(dtype.name)
    if kind == _DICTIONARY:
        ordered = dictionary.read_dictionary(reader, shape, _ordered_dtype(dtype))
        return _from_ordered(ordered, dtype)
    if kind == _INTEGERS and dtype.kind in "iu":
        return integers.read_integers(reader, shape).astype(dtype)
    if kind == _FLOATS and layout is not None:
        return floats.read_floats_exactly(reader, shape, layout).view(dtype).reshape(shape)
    raise ValueError(f"an array of {dtype.name} of kind {kind}")


def _ways(array: NDArray[Any]) -> list[Way]:
    """Those that there are for the array."""
    layout, ways = LAYOUTS.get(array.dtype.name), []
    distinct = dictionary.distinct_of(_ordered(array))
    if distinct is not None:
        ways.append(_in_dictionary)
    if layout is not None and (distinct is None or distinct.size > _FEW):
        ways.append(_by_exponents)
    if array.dtype.kind in "iu" and array.itemsize > 1:
        ways.append(_as_integers)
    return ways


def _in_dictionary(array: NDArray[Any]) -> Writer:
    writer = Writer()
    writer.write_number(_DICTIONARY)
    ordered = _ordered(array)
    dictionary.write_dictionary(writer, ordered, np.unique(ordered))
    return writer


def _as_integers(array: NDArray[Any]) -> Writer:
    writer = Writer()
    writer.write_number(_INTEGERS)
    integers.write_integers(writer, array.astype(np.int64))
    return writer


def _by_exponents(array: NDArray[Any]) -> Writer:
    writer, layout = Writer(), LAYOUTS[array.dtype.name]
    writer.write_number(_FLOATS)
    floats.write_floats_exactly(writer, array.view(layout.word), layout)
    return writer


def _ordered_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Of integers as wide, in which the elements have an order; they are signed where the elements are, and narrow."""
    is_signed = dtype.itemsize == 1 and dtype.kind not in "ub" and not dtype.name.startswith("uint")
    return np.dtype(f"{'i' if is_signed else 'u'}{dtype.itemsize}")


def _ordered(array: NDArray[Any]) -> NDArray[Any]:
    """The elements' bits as integers; of narrow floats, which have their sign apart, in the order of their values."""
    words = array.view(_ordered_dtype(array.dtype))
    return (
        np.where(words < 0, words ^ np.int8(127), words) if _has_sign_apart(array.dtype) else words
    )


def _from_ordered(words: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if _has_sign_apart(dtype):
        words = np.where(words < 0, words ^ np.int8(127), words)
    return words.astype(_ordered_dtype(dtype)).view(dtype)


def _has_sign_apart(dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize == 1 and dtype.name.startswith("float")
