"""Leaves <-> the bytes of a file: magic, checksum, and the leaves in blocks. `docs/format.md` has it byte by byte.

A block is a stream, and then the arrays of its leaves that are stored as they are. The first stream begins with the header.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from jpq_jax.artifact import leaf as leaves
from jpq_jax.artifact.header import NEWEST, read_header, write_header
from jpq_jax.artifact.record import (
    NO_CONTAINERS,
    Containers,
    Contents,
    Extras,
    Form,
    Path,
    Record,
    check_elements,
    claimed_elements,
    fewest_bytes,
)
from jpq_jax.artifact.stream import Reader, Writer

MAGIC = b"JPQ"
VERSION = NEWEST
OLDEST = 2  # that is read here

_CHECKSUM_BYTES = 4
_START = len(MAGIC) + 1 + _CHECKSUM_BYTES
_BLOCK = 2**20  # weights after which a block ends
_LONGEST_VARINT = 9  # bytes


class Packed(NamedTuple):
    """Attributes:
    parts: of the file, one after the other.
    leaf_bytes: of it, what each leaf takes, in order, if that was asked for. Streams are shared: bits are rounded so that they
      sum to whole bytes.
    """

    parts: list[bytes]
    leaf_bytes: list[int]

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return sum(map(len, self.parts))

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return b"".join(self.parts)


def pack(
    tree: Mapping[Path, Any],
    extras: Extras | None,
    containers: Containers = NO_CONTAINERS,
    *,
    by_leaf: bool = False,
) -> Packed:
    """The bytes of a file with these leaves, sorted by path; the same in every process.

    Args:
      tree: the leaves.
      extras: see `artifact.save`.
      containers: of the tree.
      by_leaf: whether to say what each leaf takes.

    Raises:
      TypeError, ValueError: for leaves or extras that cannot be stored.
    """
    records = [leaves.record_of(path, leaf) for path, leaf in tree.items()]
    values = list(tree.values())
    coded: list[_Block] = []
    for start, end in reversed(_blocks(records)):
        writer = Writer()
        if (
            start == 0
        ):  # the first block tells how long the others' streams are, and so is written last
            write_header(writer, records, containers, extras)
            for block in reversed(coded):
                writer.write_number(len(block.stream))
        coded.append(_write_block(writer, records[start:end], values[start:end], by_leaf))
    coded.reverse()
    body = [_varint(len(coded[0].stream)), *(part for block in coded for part in block[:2])]
    # Readers refuse more elements than a file of its size can justify: one that is compressed beyond that is filled up.
    least = fewest_bytes(claimed_elements(record.shape for record in records))
    body.append(bytes(max(least - _START - sum(map(len, body)), 0)))
    start = MAGIC + bytes([VERSION])
    return Packed(
        [start, _checksum(start, *body), *body],
        [size for block in coded for size in block.leaf_bytes],
    )


def unpack(data: bytes) -> Contents:
    """The inverse of `pack`, for bytes that nobody vouches for. Nothing is allocated for a leaf before it is asked for.

    Raises:
      ValueError: saying what is wrong with them, also while the leaves are read.
    """
    if len(data) < _START or _checksum(data[: len(MAGIC) + 1], data[_START:]) != _stated(data):
        raise ValueError("the checksum does not match: the file was truncated or altered")
    length, start = _read_varint(data, _START)
    first = _slice(data, start, length)
    reader = Reader(first)
    records, containers, extras = read_header(reader, len(data), data[len(MAGIC)])
    if any(a.path >= b.path for a, b in pairwise(records)):
        raise ValueError("the leaves are not in the order of their paths")
    shapes = [record.shape for record in records]
    check_elements(shapes, len(data))
    blocks = _blocks(records)
    lengths = [length, *(reader.read_number() for _ in blocks[1:])]
    raw = [sum(map(leaves.array_size, records[start:end])) for start, end in blocks]
    ends = list(accumulate(map(sum, zip(lengths, raw, strict=True)), initial=start))
    is_filled = data[len(MAGIC)] == VERSION and not any(data[ends[-1] :])
    expected = max(ends[-1], fewest_bytes(claimed_elements(shapes))) if is_filled else ends[-1]
    if expected != len(data):
        raise ValueError(f"got {len(data)} bytes, expected {expected}")

    def read(block: int) -> Iterator[Any]:
        at = ends[block] + lengths[block]
        stream = Reader(data[ends[block] : at]) if block else reader.copy()  # behind the header
        return _read_block(stream, records[slice(*blocks[block])], data[at : ends[block + 1]])

    return Contents(records, extras, blocks, read, containers)


def _blocks(records: Sequence[Record]) -> list[tuple[int, int]]:
    """First and last leaf of each block, at least one. A function of the shapes alone."""
    ends, weights = [0], 0
    for i, record in enumerate(records[:-1]):
        weights += record.size
        if weights >= _BLOCK:
            ends.append(i + 1)
            weights = 0
    return list(pairwise([*ends, len(records)]))


class _Block(NamedTuple):
    stream: bytes
    stored: bytes
    leaf_bytes: list[int]


def _write_block(
    writer: Writer, records: Sequence[Record], values: Sequence[Any], by_leaf: bool
) -> _Block:
    def bits_so_far() -> float:
        return writer.bits if by_leaf else 0.0

    stored, bits = [], [bits_so_far()]
    for record, value in zip(records, values, strict=True):
        if record.form == Form.ARRAY:
            stored.append(leaves.array_bytes(value))
        else:
            leaves.write_leaf(writer, value, record.form)
        bits.append(bits_so_far())
    stream = writer.finish()
    ends = [int(part / max(bits[-1], 1) * len(stream)) for part in bits]
    sizes = [
        b - a + leaves.array_size(r) for r, (a, b) in zip(records, pairwise(ends), strict=True)
    ]
    return _Block(stream, b"".join(stored), sizes)


def _read_block(reader: Reader, records: Sequence[Record], stored: bytes) -> Iterator[Any]:
    ends = accumulate(map(leaves.array_size, records), initial=0)
    for record, (start, end) in zip(records, pairwise(ends), strict=True):
        if record.form == Form.ARRAY:
            yield leaves.array_of(record, stored[start:end])
        else:
            yield leaves.read_leaf(reader, record)
    reader.finish()


def _checksum(*parts: bytes) -> bytes:
    sum_ = 0
    for part in parts:
        sum_ = zlib.crc32(part, sum_)
    return sum_.to_bytes(_CHECKSUM_BYTES, "little")


def _stated(data: bytes) -> bytes:
    return data[len(MAGIC) + 1 : _START]


def _slice(data: bytes, start: int, length: int) -> bytes:
    if start + length > len(data):
        raise ValueError(f"got {len(data)} bytes, expected at least {start + length}")
    return data[start : start + length]


def _varint(value: int) -> bytes:
    """Seven bits to a byte, the low ones first; the highest bit says that more follow."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for at in range(start, min(start + _LONGEST_VARINT, len(data))):
        value |= (data[at] & 0x7F) << 7 * (at - start)
        if data[at] < 0x80:
            return value, at + 1
    raise ValueError("a length that does not end")
