"""Models on disk as others keep them: safetensors files and orbax checkpoint folders. Also reads our own files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
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

_LENGTH = 8  # bytes of a safetensors file that say how long its header is
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
      offset: of its first byte in the file.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # what was read is nobody else's
        array = self.part(0, self.size).reshape(self.shape)
        return array.astype(dtype or self.dtype, copy=False)

    def part(self, first: int, count: int) -> np.ndarray:
        """So many elements in C order. Raises ValueError if the file does not have them any more."""
        # Not through a map of the file, whose pages would count as memory beside the array.
        stored, offset = self.dtype.newbyteorder("<"), self.offset + first * self.dtype.itemsize
        array = np.fromfile(self.path, stored, count, offset=offset)
        if array.size != count:
            raise ValueError(f"{self.path}: leaf {self.name!r}: the file has become shorter")
        return array.astype(self.dtype, copy=False)


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
    leaves = _stored(place)
    return leaves if lazy else {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _stored(path: Path) -> dict[str, StoredLeaf]:
    """Raises ValueError, naming the path, for what is no safetensors file."""
    try:
        with safe_open(path, "np"), path.open("rb") as file:  # which checks the header
            length = int.from_bytes(file.read(_LENGTH), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        raise ValueError(
            f"{path}: neither a safetensors file, nor an orbax folder, nor a .jpq file: {error}"
        ) from error
    leaves = {}
    for name in sorted(header.keys() - {"__metadata__"}):
        dtype, shape, (first, _) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if dtype not in _DTYPES:
            raise ValueError(
                f"{path}: leaf {name!r}: got dtype {dtype}, expected one of {', '.join(_DTYPES)}"
            )
        offset = _LENGTH + length + first
        leaves[name] = StoredLeaf(path, name, tuple(shape), np.dtype(_DTYPES[dtype]), offset)
    return leaves


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
