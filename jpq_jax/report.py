"""What a file holds, leaf by leaf, and how far two models are from each other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jpq_jax import artifact
from jpq_jax.artifact.container import MAGIC
from jpq_jax.artifact.leaf import parts_of
from jpq_jax.artifact.record import Extras
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
    distortion: squared error relative to the reference's squares, over all leaves; None without a
      reference.
    extras: the metadata it was saved with.
    leaves: in the order of the file.
    """

    nbytes: int
    container: int
    dense_bytes: int
    paper_ratio: float
    distortion: float | None
    extras: dict[str, Any]
    leaves: list[LeafReport]


class LeafDifference(NamedTuple):
    """Attributes:
    path: the leaf's place.
    shape: of it.
    relative: squared error relative to the first one's squares; 0 if both are 0, infinite if only the first is.
    largest: absolute difference.
    error: Euclidean norm of the difference.
    norm: that of the first one's finite entries.
    """

    path: str
    shape: tuple[int, ...]
    relative: float
    largest: float
    error: float
    norm: float


def inspect(
    path: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    *,
    only: str | None = None,
) -> FileReport:
    """What a .jpq file holds.

    Args:
      path: of the file.
      reference: a checkpoint, of which it was made: for the distortions.
      only: the part of the reference that was taken, as in `read_checkpoint`.

    Raises:
      ValueError: if one of them is damaged, or the reference has not the same leaves.
      OSError: if one cannot be read.
    """
    codes, extras, nbytes = artifact.load(path)
    params = None if reference is None else read_checkpoint(reference, lazy=True, only=only)
    return report_of(codes, extras, reference=params)._replace(nbytes=nbytes)


def report_of(
    codes: PyTree, extras: Extras | None = None, *, reference: PyTree | None = None
) -> FileReport:
    """What the file of a compressed tree holds, or would hold.

    Args:
      codes: the compressed tree.
      extras: that it is saved with.
      reference: the tree of arrays, of which it was made: for the distortions.

    Raises:
      ValueError: if the reference has not the same leaves.
    """
    sizes = artifact.leaf_bytes(codes, extras)
    found = [] if reference is None else differences(reference, codes)
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
                share=size / sizes.nbytes,
                distortion=distortions.get(place),
                stored=None if rate.compressed else whys[place],
            )
        )
    distortion = None if reference is None else overall(found)
    return FileReport(
        nbytes=sizes.nbytes,
        container=sizes.container,
        dense_bytes=dense,
        paper_ratio=paper_ratio(codes),
        distortion=distortion,
        extras=extras or {},
        leaves=leaves,
    )


def _why_stored(codes: PyTree) -> dict[str, str]:
    """By path, as the default rule has it; a kernel among them was left out, or wanted too many values."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), codes, is_leaf=is_codes
    )
    return {p.path: p.why for p in plan_leaves(shapes)}


def compare(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, only: str | None = None
) -> list[LeafDifference]:
    """Leaf by leaf, how far the model of one file is from another's.

    Either may be of any kind that `read_checkpoint` reads.

    Args:
      first: the one that differences are relative to.
      second: the other.
      only: the part of a checkpoint to take, as in `read_checkpoint`; .jpq files are taken whole.

    Raises:
      ValueError: if one is damaged, or they have not the same leaves.
      OSError: if one cannot be read.
    """
    models = [
        read_checkpoint(path, lazy=True, only=None if _is_artifact(path) else only)
        for path in (first, second)
    ]
    return differences(*models)


def overall(found: Iterable[LeafDifference]) -> float:
    """Squared error over all leaves, relative to the first model's squares."""
    each = list(found)
    return _relative(math.hypot(*(e.error for e in each)), math.hypot(*(e.norm for e in each)))


def _is_artifact(path: str | os.PathLike[str]) -> bool:
    place = Path(path)
    if place.is_dir():
        return False
    with place.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def differences(first: PyTree, second: PyTree) -> list[LeafDifference]:
    """The same for two trees, of arrays or compressed; "a/b" and "a.b" are the same where the other has no equal name."""
    ours, theirs = leaves_with_paths(first), leaves_with_paths(second)
    places = pairs([path for path, _ in ours], [path for path, _ in theirs])
    found = []
    for place, (path, leaf) in zip(places, theirs, strict=True):
        a, b = ours[place][1], leaf
        if np.shape(a) != np.shape(b):
            raise ValueError(f"leaf {path!r}: got shapes {np.shape(a)} and {np.shape(b)}")
        found.append(_difference(path, a, b))
    return found


def _difference(path: str, a: Any, b: Any) -> LeafDifference:
    largest, errors, norms = 0.0, [0.0], [0.0]
    for x, y in zip(_parts(a), _parts(b), strict=True):
        difference, finite = _apart(x, y)
        largest = max(largest, float(difference.max()))
        errors.append(_norm(difference))
        norms.append(_norm(finite))
    error, norm = math.hypot(*errors), math.hypot(*norms)
    return LeafDifference(path, np.shape(a), _relative(error, norm), largest, error, norm)


def _parts(leaf: Any) -> Iterator[np.ndarray]:
    """The weights in order, so many at a time; of codes, never more at once."""
    if not is_codes(leaf) or leaf.scale is not None:
        yield from parts_of(np.asarray(dequantize(leaf)))
        return
    codebook = np.asarray(leaf.codebook).astype(np.dtype(leaf.dtype))
    for code in parts_of(np.asarray(leaf.code)):
        yield codebook[code]


def _apart(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute differences of two parts, and absolute values of the first.

    Equal infinities and NaN in both differ by 0, NaN in one infinitely; what is not finite has no
    size of its own.
    """
    kind = np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64
    x, y = x.astype(kind), y.astype(kind)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(y - x)
    difference[(x == y) | (np.isnan(x) & np.isnan(y))] = 0
    difference[np.isnan(difference)] = math.inf
    return difference, np.where(np.isfinite(x), np.abs(x), 0)


def _norm(absolute: np.ndarray) -> float:
    """Of numbers whose squares may overflow or vanish."""
    unit = float(absolute.max(initial=0))
    if not 0 < unit < math.inf:
        return unit
    return unit * float(np.sqrt(((absolute / unit) ** 2).sum()))


def _relative(error: float, norm: float) -> float:
    if error and (error == math.inf or not norm):
        return math.inf
    return (error / norm) ** 2 if error else 0.0
