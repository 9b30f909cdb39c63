"""NumPy's `.npz`: a zip archive with an array file for each name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from jpq_jax.names import repeated

_SUFFIX = ".npy"


def is_npz(path: Path, head: bytes) -> bool:
    """Whether it is a zip archive of nothing but array files."""
    if not head.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(_SUFFIX) for name in archive.namelist())


def read(path: Path) -> dict[str, np.ndarray]:
    """Raises ValueError, naming the path, for what is damaged or no array of numbers."""
    # Not by `numpy.load`, which takes the first of "a" and "a.npy" for both.
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not names or repeated(names):
            raise ValueError(f"{path}: got arrays {names}, expected some, each once")
        return {name.removesuffix(_SUFFIX): _array(path, archive, name) for name in names}


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    def refused(why: object) -> ValueError:
        return ValueError(f"{path}: leaf {name.removesuffix(_SUFFIX)!r}: {why}")

    try:
        with archive.open(name) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise refused(error) from error
    if array.dtype == np.dtype("V2"):  # how NumPy writes bfloat16, the only one of two bytes
        return array.view(ml_dtypes.bfloat16)
    if array.dtype.kind not in "biufc":
        raise refused(
            f"got dtype {array.dtype}, expected numbers; float8 and integers below 8 bits lose "
            "their dtype in .npz files: use safetensors"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)
