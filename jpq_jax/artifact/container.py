"""Records and payloads <-> the bytes of a file: a safetensors file with one tensor.

Its one metadata entry, `jpq`, is the header: JSON with the version, the leaf records and the
extras. The tensor holds the leaves' bytes and, last, a checksum of all bytes before it.
`docs/format.md` has it byte by byte.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jpq_jax.artifact.record import Record, check_elements, from_json, to_json

FORMAT = "jpq"
VERSION = 1

_TENSOR = "data"
_LENGTH_BYTES = 8
_CHECKSUM_BYTES = 4

Extras = dict[str, Any]


def pack(records: Sequence[Record], payloads: Sequence[bytes], extras: Extras | None) -> bytes:
    """The bytes of a file with these leaves, the same in every process.

    Raises:
      TypeError: if the extras are not a dict.
      ValueError: if they do not survive JSON unchanged, or if the file would be one that `unpack`
        refuses for its number of elements.
    """
    header = {"version": VERSION, "leaves": [*map(to_json, records)], "extras": _checked(extras)}
    body = np.frombuffer(b"".join(payloads) + bytes(_CHECKSUM_BYTES), np.uint8)
    # One metadata entry only: safetensors would write several in random order.
    data = safetensors.numpy.save({_TENSOR: body}, {FORMAT: _dumps(header)})
    data = data[:-_CHECKSUM_BYTES] + _checksum(data)
    check_elements(records, len(data))
    return data


def unpack(data: bytes) -> tuple[list[Record], list[bytes], Extras]:
    """The inverse of `pack`, for bytes that nobody vouches for: records, payloads, extras.

    Raises:
      ValueError: saying what is wrong with them.
    """
    header = _header(data)
    _check_version(header.get("version"))
    if _checksum(data) != data[-_CHECKSUM_BYTES:]:
        raise ValueError("the checksum does not match: the file was truncated or altered")
    leaves, extras = header.get("leaves"), header.get("extras")
    if not isinstance(leaves, list) or not isinstance(extras, dict):
        raise ValueError("the header lacks a list of leaves or a dict of extras")
    records = [from_json(leaf) for leaf in leaves]
    check_elements(records, len(data))
    return records, _split(_body(data), records), extras


def _checksum(data: bytes) -> bytes:
    """Of all bytes but the last four, which it takes."""
    return zlib.crc32(memoryview(data)[:-_CHECKSUM_BYTES]).to_bytes(_CHECKSUM_BYTES, "little")


def _checked(extras: Extras | None) -> Extras:
    """The extras, if JSON gives them back as they are."""
    extras = {} if extras is None else extras
    if not isinstance(extras, dict):
        raise TypeError(f"extras: got {type(extras).__name__}, expected a dict")
    try:
        unchanged = json.loads(_dumps(extras)) == extras
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extras cannot be written as JSON: {error}") from error
    if not unchanged:
        raise ValueError(
            "extras change when written as JSON: expected dicts with string keys, lists, strings, "
            f"finite numbers, booleans and None, got {extras!r}"
        )
    return extras


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _loads(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError, also for what only Python takes for JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"the header is not a JSON object, but a {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise ValueError("not a jpq artifact, or one truncated within its header")
    text = data[_LENGTH_BYTES : _LENGTH_BYTES + length].decode("utf-8")
    metadata = _loads(text).get("__metadata__")
    header = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if not isinstance(header, str):
        raise ValueError(f"not a jpq artifact: a safetensors file without {FORMAT!r} metadata")
    return _loads(header)


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"got format version {version!r}, expected {VERSION}")
    if version > VERSION:
        raise ValueError(
            f"made by a newer version of jpq_jax: got format version {version}, expected {VERSION}"
        )


def _body(data: bytes) -> bytes:
    """The leaves' bytes, without the checksum."""
    try:
        tensors = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    if list(tensors) != [_TENSOR] or tensors[_TENSOR]["dtype"] != "U8":
        raise ValueError(f"got tensors {sorted(tensors)}, expected one of U8, {_TENSOR!r}")
    return bytes(tensors[_TENSOR]["data"])[:-_CHECKSUM_BYTES]


def _split(body: bytes, records: Sequence[Record]) -> list[bytes]:
    ends = [0, *accumulate(record.nbytes for record in records)]
    if ends[-1] != len(body):
        raise ValueError(f"got {len(body)} bytes of leaves, expected {ends[-1]}")
    return [body[start:end] for start, end in pairwise(ends)]
