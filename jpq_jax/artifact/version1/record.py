"""What a file of version 1 states about each of its leaves."""

from __future__ import annotations

from typing import Any, NamedTuple

from jpq_jax.artifact.record import DTYPES, MAX_DEPTH, MAX_DIMS, Entry, Path
from jpq_jax.vocabulary import MAX_BITS


class Record(NamedTuple):
    """What a file states about one leaf.

    Attributes:
      path: the steps from the root of the tree to the leaf.
      shape: of the leaf.
      dtype: one of `DTYPES`, the leaf's own.
      bits: 1 to 8 for compressed leaves, None for stored arrays.
      nbytes: what the leaf takes of the payload.
      scale: the shape of a compressed leaf's scale, None without one.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    bits: int | None
    nbytes: int
    scale: tuple[int, ...] | None = None


def from_json(fields: Any) -> Record:
    """Of fields that nobody vouches for: [path, shape, dtype, nbytes], the bits of a compressed leaf as a fifth, and the
    shape of its scale as a sixth.

    Raises:
      ValueError: if they are not those of some record.
    """
    _expect(isinstance(fields, list) and 4 <= len(fields) <= 6, fields, "a list of 4 to 6 fields")
    path, shape, dtype, nbytes, *rest = fields
    _expect(isinstance(path, list) and len(path) <= MAX_DEPTH, path, f"up to {MAX_DEPTH} steps")
    _expect(isinstance(shape, list) and len(shape) <= MAX_DIMS, shape, f"up to {MAX_DIMS} dims")
    _expect(all(map(_is_size, shape)), shape, "dims >= 0")
    _expect(isinstance(dtype, str) and dtype in DTYPES, dtype, "a known dtype")
    _expect(_is_size(nbytes), nbytes, "a number of bytes")
    bits, scale, *_ = [*rest, None, None]
    _expect(not rest or (_is_size(bits) and 1 <= bits <= MAX_BITS), rest, f"1 to {MAX_BITS} bits")
    if len(rest) == 2:
        fits = isinstance(scale, list) and len(scale) == len(shape)
        fits = fits and all(part in (1, dim) for part, dim in zip(scale, shape, strict=True))
        _expect(fits, scale, "the shape of a scale that broadcasts to the leaf's")
        scale = tuple(map(int, scale))
    return Record(tuple(map(_entry_from_json, path)), tuple(shape), dtype, bits, nbytes, scale)


def _entry_from_json(entry: Any) -> Entry:
    if isinstance(entry, str) or _is_size(entry):
        return entry
    _expect(isinstance(entry, list) and len(entry) == 1, entry, "a key or a position")
    _expect(_is_int(entry[0]), entry, "an integer key")
    return (entry[0],)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _expect(holds: bool, got: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"leaf record: got {_shorten(repr(got))}, expected {expected}")


def _shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length] + "..."
