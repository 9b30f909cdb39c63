"""The cache directory, and the decoded splits kept in it."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .dataset import Split

_DECODER_VERSION = 1  # raise it when the same records are to be decoded to other arrays


def cache_dir() -> Path:
    """Where this project keeps what it can rebuild: `$XDG_CACHE_HOME/jpq_jax`.

    `XDG_CACHE_HOME` is `~/.cache` unless it is set.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jpq_jax"


def cached_splits(
    folder: Path, image_shape: tuple[int, ...], decode: Callable[[], dict[str, Split]]
) -> dict[str, Split]:
    """The "train" and "test" splits of the records in `folder`, decoded at most once.

    They are kept as one file, named after the records' fingerprint, so that changed records are
    decoded again, and nothing is written to `folder`.

    Args:
      folder: prepared records, `.../<name>/<version>`.
      image_shape: [H, W, C] that a cached split must have.
      decode: decodes the records.
    """
    name = f"{folder.parent.name}-{_fingerprint(folder)}.npz"
    path = cache_dir() / "decoded" / name
    splits = _read(path, image_shape)
    if splits is None:
        splits = decode()
        _write(path, splits)
    return splits


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256(f"{_DECODER_VERSION} {folder.resolve()}".encode())
    for path in sorted(folder.iterdir()):
        status = path.stat()
        digest.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _read(path: Path, image_shape: tuple[int, ...]) -> dict[str, Split] | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # checks each array's CRC-32
            splits = {
                split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"])
                for split in ("train", "test")
            }
    except Exception:
        return None
    return splits if all(_fits(split, image_shape) for split in splits.values()) else None


def _fits(split: Split, image_shape: tuple[int, ...]) -> bool:
    images, labels = split
    dtypes = (images.dtype, labels.dtype) == (np.uint8, np.int32)
    return dtypes and images.shape == (*labels.shape, *image_shape)


def _write(path: Path, splits: dict[str, Split]) -> None:
    arrays = {
        f"{name}_{field}": array
        for name, split in splits.items()
        for field, array in split._asdict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed, so that no reader ever sees half a file.
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
