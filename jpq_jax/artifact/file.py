"""Compressed trees <-> bytes <-> files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax.tree_util import tree_unflatten

from jpq_jax.artifact import container, tree, version1
from jpq_jax.artifact.record import Contents, Extras, path_name
from jpq_jax.artifact.record import Path as LeafPath
from jpq_jax.vocabulary import PyTree, validate


class Artifact(NamedTuple):
    """What a file holds.

    Attributes:
      codes: the compressed tree.
      extras: the metadata it was saved with, keys sorted.
      nbytes: the size of the file, everything in it counted.
    """

    codes: PyTree
    extras: Extras
    nbytes: int


class Sizes(NamedTuple):
    """Where the bytes of a file go.

    Attributes:
      leaves: path and bytes of each leaf, in the order of the file. They share the bytes at their borders, which are
        counted for one of them.
      container: what is not coded leaves: names, shapes, extras, checksum.
      nbytes: of the file; the sum of the above.
    """

    leaves: list[tuple[str, int]]
    container: int
    nbytes: int


def save(path: str | os.PathLike[str], codes: PyTree, extras: Extras | None = None) -> int:
    """Writes a compressed tree to a file, whole or not at all: a crash leaves what was there.

    Args:
      path: of the file; its folder must exist.
      codes: leaves are `Codes` or arrays.
      extras: small metadata of JSON's types.

    Returns:
      The size of the file in bytes.

    Raises:
      TypeError, ValueError: as `encode` does; nothing is written.
      OSError: if the file cannot be written.
    """
    data = encode(codes, extras)
    write_whole(Path(path), data)
    return len(data)


def load(path: str | os.PathLike[str], like: PyTree | None = None) -> Artifact:
    """Reads a file that `save` wrote. Nobody need vouch for it: nothing in it is executed.

    Args:
      path: of the file.
      like: see `decode`.

    Raises:
      ValueError: naming the file and what is wrong with it, as `decode` does.
      OSError: if the file cannot be read.
    """
    return decode(Path(path).read_bytes(), like, source=os.fspath(path))


def encode(codes: PyTree, extras: Extras | None = None) -> bytes:
    """A compressed tree as the bytes of a file; the same tree gives the same bytes everywhere.

    Raises:
      TypeError: for a leaf that is neither `Codes` nor an array that can be stored, for a key
        that is neither a string nor an integer, or if extras are not a dict.
      ValueError: if `codes` breaks the invariants of `Codes` or two leaves share a path, if
        extras do not survive JSON.
    """
    leaves, containers = tree.flatten(validate(codes))
    return container.pack(leaves, extras, containers).data


def decode(data: bytes, like: PyTree | None = None, source: str = "<bytes>") -> Artifact:
    """The inverse of `encode`, bit for bit.

    Arrays come back as JAX's, except those of a dtype that JAX cannot hold (64-bit ones without
    `jax_enable_x64`), which come back as NumPy's.

    Args:
      data: the bytes of a file.
      like: a tree of arrays or `ShapeDtypeStruct`s, to put the leaves in; without it, `codes` is built of dicts (also for
        attributes and named tuples), lists and tuples. Places without leaves come back, too: None, and what was an empty
        dict, list or tuple; an empty node of any other kind as an empty dict.
      source: what errors call the file.

    Raises:
      ValueError: naming the source and what is wrong: no artifact, a newer version, truncated,
        altered, claiming what its size cannot justify; or naming the first leaf that `like` has
        otherwise.
    """
    try:
        codes, extras = _decode(data, like)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return Artifact(codes, extras, len(data))


def file_bytes(codes: PyTree, extras: Extras | None = None) -> int:
    """The size of what `save` would write."""
    leaves, containers = tree.flatten(validate(codes))
    return container.pack(leaves, extras, containers).nbytes


def leaf_bytes(codes: PyTree, extras: Extras | None = None) -> Sizes:
    """What `save` would write for each leaf, and for the container around them.

    Raises:
      TypeError, ValueError: as `encode` does.
    """
    by_path, containers = tree.flatten(validate(codes))
    packed = container.pack(by_path, extras, containers, by_leaf=True)
    leaves = list(zip(map(path_name, by_path), packed.leaf_bytes, strict=True))
    return Sizes(leaves, packed.nbytes - sum(packed.leaf_bytes), packed.nbytes)


def _decode(data: bytes, like: PyTree | None) -> tuple[PyTree, Extras]:
    contents = unpack(data)
    by_path = {record.path: record for record in contents.records}
    places = None if like is None else tree.fit(by_path, like)  # before anything is decoded
    leaves = dict(zip(by_path, contents.leaves(), strict=True))
    if places is None:
        return validate(tree.build(leaves, contents.containers)), contents.extras
    paths, structure = places
    return validate(tree_unflatten(structure, [leaves[path] for path in paths])), contents.extras


def unpack(data: bytes) -> Contents:
    """What a file of any version holds. Raises ValueError, without its name, for what no writer gives."""
    contents = _unpacker(data)(data)
    paths: set[LeafPath] = set()
    for record in contents.records:
        if record.path in paths:
            raise ValueError(f"leaf {path_name(record.path)!r}: two leaves have this path")
        paths.add(record.path)
    return contents


def _unpacker(data: bytes) -> Callable[[bytes], Contents]:
    """By the version that a file states."""
    if not data.startswith(container.MAGIC):
        return version1.unpack
    if len(data) == len(container.MAGIC):
        raise ValueError("not a jpq artifact, or one truncated within its header")
    version = data[len(container.MAGIC)]
    if version > container.VERSION:
        raise ValueError(
            f"made by a newer version of jpq_jax: got format version {version}, "
            f"expected up to {container.VERSION}"
        )
    if version < container.OLDEST:
        raise ValueError(
            f"got format version {version}, expected {container.OLDEST} to {container.VERSION}"
        )
    return container.unpack


unfinished: set[Path] = set()
"""Files that are being written; who ends the process without unwinding the stack removes them."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file beside its place first, then moves it there, which is atomic."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    unfinished.add(temporary)  # before it is there
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        unfinished.discard(temporary)
