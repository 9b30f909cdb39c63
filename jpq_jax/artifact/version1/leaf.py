"""The bytes of a leaf in the payload -> the leaf."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.leaf import unnamed_array
from jpq_jax.artifact.record import path_name
from jpq_jax.artifact.stream import PRECISION, TOTAL
from jpq_jax.artifact.version1 import coder
from jpq_jax.artifact.version1.record import Record
from jpq_jax.vocabulary import LEVELS, Codes

_COUNTS = np.dtype("<u2")
_VALUE = np.dtype("<f4")
_WORD = np.dtype("<u4")
_FREQUENCY_BYTES = PRECISION // 8


def unpack(record: Record, payload: bytes) -> Codes | jax.Array | NDArray[Any]:
    """The leaf of a record and bytes that nobody vouches for.

    Allocates about 2 bytes an element, so check the records first.

    Raises:
      ValueError: naming the leaf, if the bytes are not those of such a leaf.
    """
    try:
        if record.bits is None:
            return _unpack_array(record, payload)
        return _unpack_codes(record, record.bits, payload)
    except ValueError as error:
        raise ValueError(f"leaf {path_name(record.path)!r}: {error}") from error


def _unpack_array(record: Record, payload: bytes) -> jax.Array | NDArray[Any]:
    dtype = np.dtype(record.dtype)
    nbytes = math.prod(record.shape) * dtype.itemsize
    if len(payload) != nbytes:
        raise ValueError(f"got {len(payload)} bytes, expected {nbytes} for {dtype}{record.shape}")
    return unnamed_array(record.dtype, record.shape, payload)


def _unpack_codes(record: Record, bits: int, payload: bytes) -> Codes:
    reader = _Reader(payload)
    values, symbols = (int(count) for count in reader.take(2, _COUNTS))
    if values >= LEVELS or symbols > LEVELS:
        raise ValueError(f"{values} values and {symbols} codes, expected up to {LEVELS - 1} values")
    codebook = np.zeros(LEVELS, np.float32)
    codebook[1 : 1 + values] = reader.take(values, _VALUE)
    scale = None
    if record.scale is not None:
        scale = jnp.asarray(reader.take(math.prod(record.scale), _VALUE).reshape(record.scale))
    table = _read_frequencies(reader, symbols)
    words = reader.take(reader.left // _WORD.itemsize, _WORD)
    if reader.left:
        raise ValueError(f"{reader.left} bytes after the last coded word")
    code = coder.decode(words, table, math.prod(record.shape))
    return Codes(
        code=jnp.asarray(code.reshape(record.shape)),
        codebook=jnp.asarray(codebook),
        bits=jnp.asarray(bits, jnp.int32),
        dtype=record.dtype,
        scale=scale,
    )


def _read_frequencies(reader: _Reader, symbols: int) -> NDArray[np.int64]:
    if not symbols:
        return np.zeros(0, np.int64)
    narrow = reader.take((symbols - 1) * _FREQUENCY_BYTES, np.dtype(np.uint8))
    wide = np.zeros((symbols - 1, 4), np.uint8)
    wide[:, :_FREQUENCY_BYTES] = narrow.reshape(-1, _FREQUENCY_BYTES)
    others = wide.view("<u4")[:, 0].astype(np.int64)
    return np.append(others, TOTAL - others.sum())


class _Reader:
    """Takes arrays off the front of some bytes; raises ValueError once they run out."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._offset = 0

    @property
    def left(self) -> int:
        return len(self._payload) - self._offset

    def take(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        nbytes = count * dtype.itemsize
        if nbytes > self.left:
            raise ValueError(f"{self.left} bytes left, expected at least {nbytes}")
        array = np.frombuffer(self._payload, dtype, count, self._offset)
        self._offset += nbytes
        return array.astype(dtype.newbyteorder("="))
