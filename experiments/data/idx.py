"""MNIST in its own IDX files."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from .dataset import Split

_MD5 = {  # of the uncompressed files
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


def read_mnist(folder: Path) -> dict[str, Split]:
    """Reads the four gzipped IDX files of `folder`, in the data set's own order.

    Returns:
      "train" with 60,000 and "test" with 10,000 images [N, 28, 28, 1].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is truncated or altered; the message names it.
    """
    return {"train": _read_split(folder, "train"), "test": _read_split(folder, "t10k")}


def _read_split(folder: Path, prefix: str) -> Split:
    images = _read_array(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = _read_array(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return Split(images[..., None], labels.astype(np.int32))


def _read_array(path: Path) -> np.ndarray:
    content = _read_verified(path)
    # Two zero bytes, the element type, the number of axes, each axis's length, then the elements.
    # The MD5 pins them all: the type is uint8.
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_verified(path: Path) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or altered: {error}") from error
    found, expected = hashlib.md5(content, usedforsecurity=False).hexdigest(), _MD5[path.name]
    if found != expected:
        raise ValueError(
            f"{path} is altered: its uncompressed content has MD5 {found}, expected {expected}"
        )
    return content
