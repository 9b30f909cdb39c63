"""What a file states about each of its leaves: place, shape, dtype, and in which form it is there."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

# One step into a tree: a string key or an attribute; a position; an integer key, as a 1-tuple.
Entry = str | int | tuple[int]
Path = tuple[Entry, ...]

DTYPES = (  # a file has their numbers: append only
    *("float32", "bfloat16", "float16", "float64", "int32", "int8", "int64", "uint8", "bool"),
    *("int16", "uint16", "uint32", "uint64", "int4", "uint4", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e3m4", "float8_e4m3", "float8_e8m0fnu"),
    *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e5m3fnu"),
    *("int2", "uint2", "int1", "uint1", "complex32", "bcomplex32"),
)
MAX_DIMS = 64  # of a leaf, as in NumPy
MAX_DEPTH = 100  # of a leaf in its tree

# A leaf of zeros only takes no bytes, so a file's size bounds nothing by itself. With these, no
# file makes a reader hold more than 8 MiB + 2 KiB of codes for each of its bytes, or eight times as much of complex128.
FREE_ELEMENTS = 2**22
ELEMENTS_PER_BYTE = 2**10


Extras = dict[str, Any]
"""Small metadata of JSON's types."""


class Form(enum.IntEnum):
    """How a leaf is written; a file has the numbers."""

    ARRAY = 0  # its bytes as they are
    CODES = 1
    FLOATS = 2  # an array of rounded floats: multiples of a step, or of few digits
    LOSSLESS = 3  # any array that gets shorter


class Record(NamedTuple):
    """What a file states about one leaf.

    Attributes:
      path: the steps from the root of the tree to the leaf.
      shape: of the leaf.
      dtype: one of `DTYPES`, the leaf's own.
      form: how it is written.
      scale: the shape of the scale of `Codes`, None without one.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    form: Form
    scale: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Containers(NamedTuple):
    """What the paths of the leaves do not say of the tree.

    Attributes:
      empty: path to None, or an empty dict, list or tuple, for each place without leaves.
      tuples: paths of the places whose positions are those of a tuple, not of a list.
    """

    empty: dict[Path, Any]
    tuples: frozenset[Path]


NO_CONTAINERS = Containers({}, frozenset())


class Contents(NamedTuple):
    """What was found in a file; its leaves are decoded when they are asked for.

    Attributes:
      records: of all leaves, in the order of the file.
      extras: the metadata it was saved with.
      blocks: the leaves that are coded together: the first, and the one after the last.
      read: the leaves of a block, by its number. Raises ValueError for what no writer gives.
      containers: of the tree.
    """

    records: list[Record]
    extras: Extras
    blocks: list[tuple[int, int]]
    read: Callable[[int], Iterator[Any]]
    containers: Containers = NO_CONTAINERS

    def leaves(self) -> Iterator[Any]:
        for block in range(len(self.blocks)):
            yield from self.read(block)


def path_name(path: Path) -> str:
    """A path for messages and reports, written like `vocabulary.path_string`."""
    keys = (entry[0] if isinstance(entry, tuple) else entry for entry in path)
    return "/".join(map(str, keys)) if path else "(root)"


def fewest_bytes(elements: int) -> int:
    """Of a file that may claim so many elements."""
    return max(-(-(elements - FREE_ELEMENTS) // ELEMENTS_PER_BYTE), 0)


def claimed_elements(shapes: Iterable[tuple[int, ...]]) -> int:
    """Of leaves of these shapes. An empty dim counts as 1: (0, 2**40) must not pass for free."""
    return sum(math.prod(max(dim, 1) for dim in shape) for shape in shapes)


def check_elements(shapes: Iterable[tuple[int, ...]], file_bytes: int) -> None:
    """Raises ValueError for leaves with more elements than a file of this size can justify."""
    claimed = claimed_elements(shapes)
    if file_bytes < fewest_bytes(claimed):
        raise ValueError(
            f"{claimed} elements in a file of {file_bytes} bytes, expected at least {fewest_bytes(claimed)} bytes for so many"
        )
