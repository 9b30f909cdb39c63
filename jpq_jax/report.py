"""What a file holds, leaf by leaf, and how far two models are from each other."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from jpq_jax import artifact
from jpq_jax.checkpoint import read_checkpoint
from jpq_jax.names import pairs
from jpq_jax.plan import plan_leaves
from jpq_jax.rate import account, paper_ratio
from jpq_jax.vocabulary import PyTree, dequantize, is_codes, leaves_with_paths


class LeafReport(NamedTuple):
    """Attributes:
    path: the leaf's place in the tree.
    shape: of it.
    dtype: its own.
    bits: that index its values, or the width of its dtype if it is stored.
    density: share of weights that are not 0; 1 of an empty leaf.
    nbytes: that it takes in the file.
    share: of the file.
    distortion: squared error relative to the reference's squares; None without a reference.
    stored: why it is an array; None if it is codes.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    density: float
    nbytes: int
    share: float
    distortion: float | None
    stored: str | None


class FileReport(NamedTuple):
    """Attributes:
    nbytes: of the file: the leaves' and the container's.
    container: names, shapes, extras, checksum.
    dense_bytes: of the model as arrays.
    paper_ratio: 32 x weights by bits x nonzeros, over the compressed leaves.
    extras: the metadata it was saved with.
    leaves: in the order of the file.
    """

    nbytes: int
    container: int
    dense_bytes: int
    paper_ratio: float
    extras: dict[str, Any]
    leaves: list[LeafReport]


class LeafDifference(NamedTuple):
    """Attributes:
    path: the leaf's place.
    shape: of it.
    relative: squared error relative to the first one's squares; 0 if both are 0, infinite if only the first is.
    largest: absolute difference.
    """

    path: str
    shape: tuple[int, ...]
    relative: float
    largest: float


def inspect(
    path: str | os.PathLike[str], reference: str | os.PathLike[str] | None = None
) -> FileReport:
    """What a .jpq file holds.

    Args:
      path: of the file.
      reference: a checkpoint, of which it was made: for the distortions.

    Raises:
      ValueError: if one of them is damaged, or the reference has not the same leaves.
      OSError: if one cannot be read.
    """
    codes, extras, nbytes = artifact.load(path)
    sizes = artifact.leaf_bytes(codes, extras)
    distortions: dict[str, float] = {}
    if reference is not None:
        found = differences(read_checkpoint(reference), dequantize(codes))
        distortions = {each.path: each.relative for each in found}
    rates = {rate.path: rate for rate in account(codes)}
    whys = _why_stored(codes)
    leaves, dense = [], 0
    by_path = dict(leaves_with_paths(codes))
    for place, size in sizes.leaves:
        leaf, rate = by_path[place], rates[place]
        width = np.dtype(leaf.dtype).itemsize
        dense += width * rate.weights
        leaves.append(
            LeafReport(
                path=place,
                shape=tuple(leaf.shape),
                dtype=str(leaf.dtype),
                bits=rate.bits,
                density=rate.nonzeros / rate.weights if rate.weights else 1.0,
                nbytes=size,
                share=size / nbytes,
                distortion=distortions.get(place),
                stored=None if rate.compressed else whys[place],
            )
        )
    return FileReport(nbytes, sizes.container, dense, paper_ratio(codes), extras, leaves)


def _why_stored(codes: PyTree) -> dict[str, str]:
    """By path, as the default rule has it; a kernel among them was left out, or wanted too many values."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), codes, is_leaf=is_codes
    )
    return {p.path: p.why for p in plan_leaves(shapes)}


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> list[LeafDifference]:
    """Leaf by leaf, how far the model of one file is from another's. Either may be of any kind that `read_checkpoint` reads.

    Raises:
      ValueError: if one is damaged, or they have not the same leaves.
      OSError: if one cannot be read.
    """
    return differences(read_checkpoint(first), read_checkpoint(second))


def differences(first: PyTree, second: PyTree) -> list[LeafDifference]:
    """The same for two trees; "a/b" and "a.b" are the same where the other has no equal name."""
    ours, theirs = leaves_with_paths(first), leaves_with_paths(second)
    places = pairs([path for path, _ in ours], [path for path, _ in theirs])
    found = []
    for place, (path, leaf) in zip(places, theirs, strict=True):
        a, b = (np.asarray(each) for each in (ours[place][1], leaf))
        if a.shape != b.shape:
            raise ValueError(f"leaf {path!r}: got shapes {a.shape} and {b.shape}")
        found.append(LeafDifference(path, a.shape, *_distance(a, b)))
    return found


def _distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    wide, error = a.astype(np.float64), np.abs(b.astype(np.float64) - a.astype(np.float64))
    lost, whole = float((error**2).sum()), float((wide**2).sum())
    relative = lost / whole if whole else (0.0 if not lost else math.inf)
    return relative, float(error.max(initial=0))
