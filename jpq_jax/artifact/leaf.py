"""A leaf <-> its part of an entropy-coded stream, or its bytes as they are."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact import lossless
from jpq_jax.artifact.floats import (
    HELD,
    read_array,
    read_floats,
    rounded_bits,
    write_array,
    write_floats,
)
from jpq_jax.artifact.numbers import read_numbers, write_numbers
from jpq_jax.artifact.record import DTYPES, Form, Path, Record, path_name
from jpq_jax.artifact.stream import Reader, Writer, uniform
from jpq_jax.artifact.values import read_values, values_of, write_values
from jpq_jax.vocabulary import MAX_BITS, NOT_IN_JAX, Codes, is_codes

_NO_CODE = -1
_SMALL = 2**14  # elements
_PART = 2**20  # codes that are looked at together


def record_of(path: Path, leaf: Any) -> Record:
    """What a file states about a leaf.

    Raises:
      TypeError: if the leaf is neither a `Codes` nor an array of one of `DTYPES`.
      ValueError: if the dtype that a `Codes` states is not one of them.
    """
    name = path_name(path)
    if is_codes(leaf):
        if leaf.dtype not in DTYPES:
            raise ValueError(
                f"codes of leaf {name!r}: got dtype {leaf.dtype!r}, expected one of {', '.join(sorted(DTYPES))}"
            )
        scale = None if leaf.scale is None else tuple(leaf.scale.shape)
        return Record(path, tuple(leaf.shape), leaf.dtype, Form.CODES, scale)
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"leaf {name!r}: got {type(leaf).__name__}, expected an array or Codes")
    check_storable(name, leaf.dtype)
    return Record(path, tuple(leaf.shape), leaf.dtype.name, _form_of(native(leaf)))


def check_storable(name: str, dtype: Any) -> None:
    """Raises TypeError, naming the leaf, for a dtype that files do not hold."""
    if dtype.name not in DTYPES:
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        hint = "; `jax.random.key_data` gives a key's own array" if is_key else ""
        raise TypeError(
            f"leaf {name!r}: got dtype {dtype}, expected one of {', '.join(sorted(DTYPES))}{hint}"
        )


def _form_of(array: NDArray[Any]) -> Form:
    """The shortest; a large array is not tried as one of rounded floats, and otherwise by its beginning."""
    bits = {
        Form.ARRAY: 8.0 * array.nbytes,
        Form.FLOATS: rounded_bits(array) if array.size <= _SMALL else math.inf,
        Form.LOSSLESS: 8 * lossless.estimated_bytes(array),
    }
    return min(bits, key=lambda form: bits[form])


def native(leaf: Any) -> NDArray[Any]:
    """An array in native byte order."""
    return np.asarray(leaf).astype(np.dtype(leaf.dtype.name), copy=False)


def array_bytes(leaf: Any) -> bytes:
    """A stored array's elements in C order, in native byte order."""
    return native(leaf).tobytes()


def array_of(record: Record, data: bytes) -> jax.Array | NDArray[Any]:
    """The inverse, for bytes that nobody vouches for. Raises ValueError, naming the leaf."""
    try:
        return unnamed_array(record.dtype, record.shape, data)
    except ValueError as error:
        raise ValueError(f"leaf {path_name(record.path)!r}: {error}") from error


def unnamed_array(dtype_name: str, shape: tuple[int, ...], data: bytes) -> jax.Array | NDArray[Any]:
    """Raises ValueError if the bytes are not those of an array of as many elements."""
    dtype = np.dtype(dtype_name)
    if dtype == np.bool_ and data.strip(b"\0\1"):
        raise ValueError("a bool that is neither 0 nor 1")
    return _held(np.frombuffer(data, dtype).reshape(shape).copy())


def _held(array: NDArray[Any]) -> jax.Array | NDArray[Any]:
    """As JAX's, unless JAX would round it without x64, or has not its dtype; such arrays stay NumPy's."""
    is_held = array.dtype.name not in NOT_IN_JAX
    is_held = is_held and jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if is_held else array


def _read_lossless(reader: Reader, record: Record) -> jax.Array | NDArray[Any]:
    if not record.size:
        raise ValueError("an empty array that is coded")
    array = lossless.read_array(reader, record.shape, np.dtype(record.dtype))
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise ValueError("a bool that is neither 0 nor 1")
    return _held(array)


def array_size(record: Record) -> int:
    """Bytes that a leaf takes as it is; 0 for one that is coded."""
    return record.size * np.dtype(record.dtype).itemsize if record.form == Form.ARRAY else 0


def write_leaf(writer: Writer, leaf: Any, form: Form) -> None:
    """One that is coded."""
    if form == Form.CODES:
        _write_codes(writer, leaf)
    elif form == Form.LOSSLESS:
        lossless.write_array(writer, native(leaf))
    else:
        write_array(writer, np.asarray(leaf).astype(np.float32))


def read_leaf(reader: Reader, record: Record) -> Any:
    """Raises ValueError, naming the leaf, for what no writer gives."""
    try:
        if record.form == Form.CODES:
            return _read_codes(reader, record)
        if record.form == Form.LOSSLESS:
            return _read_lossless(reader, record)
        if record.dtype not in HELD:
            raise ValueError(f"floats of dtype {record.dtype}, expected one of {', '.join(HELD)}")
        floats = read_array(reader, record.shape)
        if not np.isfinite(floats).all():
            raise ValueError("a float that is not finite")
        return jnp.asarray(floats.astype(np.dtype(record.dtype)))
    except ValueError as error:
        raise ValueError(f"leaf {path_name(record.path)!r}: {error}") from error


def bits_of_codes(leaf: Codes) -> float:
    """What `Codes` take in a file, about."""
    writer = Writer()
    _write_codes(writer, leaf)
    return writer.bits


def _write_codes(writer: Writer, leaf: Codes) -> None:
    writer.write(np.array([int(leaf.bits) - 1]), uniform(MAX_BITS))
    code = np.asarray(leaf.code)
    values = values_of(np.asarray(leaf.codebook), int(code.max(initial=0)))
    write_values(writer, values)
    if leaf.scale is not None:
        write_floats(writer, np.asarray(leaf.scale))
    is_narrow = max(-values.low, values.high) < 2**7
    table = values.numbers.astype(np.int8) if is_narrow else values.numbers
    write_numbers(writer, looked_up(table, code), values.low, values.high)


def _read_codes(reader: Reader, record: Record) -> Codes:
    bits = 1 + int(reader.read(1, uniform(MAX_BITS))[0])
    values = read_values(reader)
    scale = None
    if record.scale is not None:
        scale = jnp.asarray(read_floats(reader, math.prod(record.scale)).reshape(record.scale))
    numbers = read_numbers(reader, record.shape, values.low, values.high)
    code = looked_up(_code_of(values.numbers), numbers)
    if code.min(initial=0) == _NO_CODE:
        raise ValueError("a code that stands for no value")
    return Codes(
        code=jnp.asarray(code),
        codebook=jnp.asarray(values.codebook),
        bits=jnp.asarray(np.int32(bits)),
        dtype=record.dtype,
        scale=scale,
    )


def looked_up(table: NDArray[Any], indices: NDArray[np.integer]) -> NDArray[Any]:
    """table[indices] for indices in range, part by part: NumPy makes 8 bytes of an index."""
    found = np.empty(indices.shape, table.dtype)
    for part, out in zip(parts_of(indices), parts_of(found), strict=True):
        table.take(part, out=out, mode="wrap")
    return found


def parts_of(x: NDArray[Any], size: int = _PART) -> list[NDArray[Any]]:
    """An array's elements in order, so many at a time; views, if it is contiguous."""
    flat = x.reshape(-1)
    return [flat[at : at + size] for at in range(0, flat.size, size)]


def _code_of(numbers: NDArray[np.int16]) -> NDArray[np.int16]:
    """[high - low + 1], the code of each number from the lowest on; of those below 0 at the end, where NumPy looks for them."""
    codes = np.full(int(numbers.max()) - int(numbers.min()) + 1, _NO_CODE, np.int16)
    codes[numbers] = np.arange(numbers.size, dtype=np.int16)
    return codes
