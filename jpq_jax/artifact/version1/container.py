"""The bytes of a file -> records and payloads: a safetensors file with one tensor.

Its one metadata entry, `jpq`, is the header: JSON with the version, the leaf records and the
extras. The tensor holds the leaves' bytes and, last, a checksum of all bytes before it.
`docs/format1.md` has it byte by byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import safetensors

from jpq_jax.artifact.header import json_object
from jpq_jax.artifact.record import Extras, check_elements
from jpq_jax.artifact.version1.record import Record, from_json

FORMAT = "jpq"
VERSION = 1

_TENSOR = "data"
_LENGTH_BYTES = 8
_CHECKSUM_BYTES = 4


def unpack(data: bytes) -> tuple[list[Record], list[bytes], Extras]:
    """Of bytes that nobody vouches for: records, payloads, extras.

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
    check_elements((record.shape for record in records), len(data))
    return records, _split(_body(data), records), extras


def _checksum(data: bytes) -> bytes:
    """Of all bytes but the last four, which it takes."""
    return zlib.crc32(memoryview(data)[:-_CHECKSUM_BYTES]).to_bytes(_CHECKSUM_BYTES, "little")


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise ValueError("not a jpq artifact, or one truncated within its header")
    text = data[_LENGTH_BYTES : _LENGTH_BYTES + length].decode("utf-8")
    metadata = json_object(text, "the header is").get("__metadata__")
    header = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if not isinstance(header, str):
        raise ValueError(f"not a jpq artifact: a safetensors file without {FORMAT!r} metadata")
    return json_object(header, "the header is")


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
