"""Models on disk as others keep them: safetensors files and orbax checkpoint folders. Also reads our own files."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jpq_jax import artifact
from jpq_jax.artifact.container import MAGIC
from jpq_jax.artifact.file import write_whole
from jpq_jax.vocabulary import PyTree, dequantize, leaves_with_paths

_IN_FLAX = ("BF16",)  # that NumPy does not know by itself
_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": jnp.bfloat16,
    "BOOL": "bool",
}

_PYTORCH_NAMES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """An array that is read from its safetensors file whenever it is asked for: `np.asarray(leaf)`.

    Attributes:
      path: of the file.
      name: its name there.
      shape: of the array.
      dtype: of the array.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # what was read is nobody else's
        array = _read(self.path, [self.name])[self.name]
        return array if dtype is None else array.astype(dtype)


def read_checkpoint(path: str | os.PathLike[str], *, lazy: bool = False) -> PyTree:
    """The arrays of a checkpoint: a dict by name of a safetensors file, the tree of an orbax folder, or of a .jpq file what it stands for.

    Args:
      path: of the file or folder.
      lazy: leave what is in a safetensors file there: leaves are `StoredLeaf`, of which `compress` holds one at a time.

    Raises:
      ValueError: naming the path, if it is none of these or damaged.
      OSError: if it cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        return _read_orbax(place)
    with place.open("rb") as file:
        ours = file.read(len(MAGIC)) == MAGIC
    if ours:
        return dequantize(artifact.load(place).codes)
    return _stored(place) if lazy else _read(place)


def _stored(path: Path) -> dict[str, StoredLeaf]:
    with _opened(path) as file:
        leaves = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise ValueError(
                    f"{path}: leaf {name!r}: got dtype {part.get_dtype()}, expected one of {', '.join(_DTYPES)}"
                )
            leaves[name] = StoredLeaf(path, name, tuple(part.get_shape()), np.dtype(dtype))
        return leaves


def _read(path: Path, names: list[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of these names, or all."""
    with _opened(path) as file, safe_open(path, "flax") as in_flax:
        return {
            name: np.asarray(
                (in_flax if _dtype_in(file, name) in _IN_FLAX else file).get_tensor(name)
            )
            for name in names or file.keys()
        }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Raises ValueError, naming the path, for what is no safetensors file."""
    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: neither a safetensors file, nor an orbax folder, nor a .jpq file: {error}"
        ) from error


def _dtype_in(file: Any, name: str) -> str:
    return file.get_slice(name).get_dtype()


def _read_orbax(path: Path) -> PyTree:
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ValueError(
            f"{path}: got a folder; to read orbax checkpoints, install jpq_jax[orbax]"
        ) from error
    try:
        with orbax.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path.absolute())
    except (ValueError, FileNotFoundError, KeyError) as error:
        raise ValueError(f"{path}: got a folder that is no orbax checkpoint: {error}") from error
    return jax.tree.map(np.asarray, tree)


def write_safetensors(
    path: str | os.PathLike[str], params: PyTree, *, pytorch: bool = False
) -> int:
    """Writes a tree's leaves as a safetensors file, whole or not at all; their names are the keys joined by ".".

    Args:
      path: of the file; its folder must exist.
      params: arrays.
      pytorch: whether to turn Flax's names and layouts into PyTorch's: `kernel` becomes `weight`, with its last two axes first and
        outputs before inputs, `scale` and `embedding` become `weight`, `mean` and `var` `running_mean` and `running_var`.

    Returns:
      The size of the file in bytes.

    Raises:
      ValueError: if two leaves would have one name, or for a dtype that the format lacks.
      OSError: if the file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    for place, leaf in leaves_with_paths(params):
        name, tensor = place.replace("/", "."), np.asarray(leaf)
        if pytorch:
            name, tensor = _in_pytorch(name, tensor)
        if name in tensors:
            raise ValueError(f"leaf {place!r}: another leaf is called {name!r}, too")
        tensors[name] = np.ascontiguousarray(tensor).reshape(tensor.shape)
    try:
        data = save(tensors)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"cannot be written as safetensors: {error}") from error
    write_whole(Path(path), data)
    return len(data)


def _in_pytorch(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    parent, _, last = name.rpartition(".")
    if last == "kernel" and tensor.ndim >= 2:
        spatial = range(tensor.ndim - 2)
        tensor = tensor.transpose(tensor.ndim - 1, tensor.ndim - 2, *spatial)
    renamed = _PYTORCH_NAMES.get(last, last)
    return (f"{parent}.{renamed}" if parent else renamed), tensor
