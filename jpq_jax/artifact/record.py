"""What a file states about each of its leaves: place, shape, dtype, and how many bytes it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from jpq_jax.vocabulary import MAX_BITS

# One step into a tree: a string key or an attribute; a position; an integer key, as a 1-tuple.
Entry = str | int | tuple[int]
Path = tuple[Entry, ...]

DTYPES = frozenset(
    {"bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)}
    | {f"float8_{kind}" for kind in ("e3m4", "e4m3", "e5m2", "e8m0fnu")}
    | {f"float8_{kind}" for kind in ("e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2fnuz")}
)
MAX_DIMS = 64  # of a leaf, as in NumPy
MAX_DEPTH = 100  # of a leaf in its tree

# A leaf of zeros only takes no bytes, so a file's size bounds nothing by itself. With these, no
# file makes a reader allocate more than 256 MiB + 2 KiB for each of its bytes.
FREE_ELEMENTS = 2**27
ELEMENTS_PER_BYTE = 2**10


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


def path_name(path: Path) -> str:
    """A path for messages and reports, written like `vocabulary.path_string`."""
    keys = (entry[0] if isinstance(entry, tuple) else entry for entry in path)
    return "/".join(map(str, keys)) or "(root)"


def to_json(record: Record) -> list[Any]:
    """[path, shape, dtype, nbytes], the bits of a compressed leaf as a fifth, and the shape of its scale as a sixth."""
    bits = () if record.bits is None else (record.bits,)
    scale = () if record.scale is None else (record.scale,)
    return [record.path, record.shape, record.dtype, record.nbytes, *bits, *scale]


def from_json(fields: Any) -> Record:
    """The inverse of `to_json`, for fields that nobody vouches for.

    Raises:
      ValueError: if they are not what `to_json` gives for some record.
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


def check_elements(records: Iterable[Record], file_bytes: int) -> None:
    """Raises ValueError for leaves with more elements than a file of this size can justify."""
    # An empty dim counts as 1: (0, 2**40) must not pass for free.
    claimed = sum(math.prod(max(dim, 1) for dim in record.shape) for record in records)
    allowed = FREE_ELEMENTS + ELEMENTS_PER_BYTE * file_bytes
    if claimed > allowed:
        raise ValueError(
            f"{claimed} elements in a file of {file_bytes} bytes, expected at most {allowed}"
        )


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
