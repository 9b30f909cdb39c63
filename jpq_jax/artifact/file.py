"""Compressed trees <-> bytes <-> files."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import NamedTuple

from jax.tree_util import tree_unflatten

from jpq_jax.artifact import container, leaf, tree
from jpq_jax.artifact.container import Extras
from jpq_jax.artifact.record import Path as LeafPath
from jpq_jax.artifact.record import Record, path_name
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
      leaves: path and coded bytes of each leaf, in the order of the file.
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
    _write(Path(path), data)
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
        extras do not survive JSON, or if a file so small may not claim so many weights (see
        `record.check_elements`).
    """
    records, payloads = _pack_leaves(codes)
    return container.pack(records, payloads, extras)


def decode(data: bytes, like: PyTree | None = None, source: str = "<bytes>") -> Artifact:
    """The inverse of `encode`, bit for bit.

    Arrays come back as JAX's, except those of a dtype that JAX cannot hold (64-bit ones without
    `jax_enable_x64`), which come back as NumPy's.

    Args:
      data: the bytes of a file.
      like: a tree of arrays or `ShapeDtypeStruct`s, to put the leaves in; without it, `codes` is
        built of dicts (also for attributes) and lists, with None for absent positions.
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


def leaf_bytes(codes: PyTree, extras: Extras | None = None) -> Sizes:
    """What `save` would write for each leaf, and for the container around them.

    Raises:
      TypeError, ValueError: as `encode` does.
    """
    records, payloads = _pack_leaves(codes)
    nbytes = len(container.pack(records, payloads, extras))
    leaves = [(path_name(record.path), record.nbytes) for record in records]
    return Sizes(leaves, nbytes - sum(size for _, size in leaves), nbytes)


def _pack_leaves(codes: PyTree) -> tuple[list[Record], list[bytes]]:
    leaves = tree.flatten(validate(codes))
    packed = [leaf.pack(path, value) for path, value in leaves.items()]
    return [record for record, _ in packed], [payload for _, payload in packed]


def _decode(data: bytes, like: PyTree | None) -> tuple[PyTree, Extras]:
    records, payloads, extras = container.unpack(data)
    by_path: dict[LeafPath, Record] = {}
    for record in records:
        if by_path.setdefault(record.path, record) is not record:
            raise ValueError(f"leaf {path_name(record.path)!r}: two leaves have this path")
    places = None if like is None else tree.fit(by_path, like)  # before anything is decoded
    leaves = {r.path: leaf.unpack(r, p) for r, p in zip(records, payloads, strict=True)}
    if places is None:
        return validate(tree.build(leaves)), extras
    paths, structure = places
    return validate(tree_unflatten(structure, [leaves[path] for path in paths])), extras


def _write(path: Path, data: bytes) -> None:
    """Writes the file beside its place first, then moves it there, which is atomic."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
