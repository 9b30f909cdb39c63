"""Any checkpoint -> a tree of arrays, by what is in the file or folder, not by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jpq_jax import artifact
from jpq_jax.artifact.container import MAGIC
from jpq_jax.checkpoint import flax_msgpack, npz, orbax
from jpq_jax.checkpoint.huggingface import find_tensors, is_index, stored_by_index
from jpq_jax.checkpoint.other import HEAD, by_sign, refused_file, refused_folder
from jpq_jax.checkpoint.safetensors import is_safetensors, stored
from jpq_jax.names import subtree
from jpq_jax.vocabulary import PyTree, dequantize


def read_checkpoint(
    path: str | os.PathLike[str], *, lazy: bool = False, only: str | None = None
) -> PyTree:
    """The arrays of a checkpoint.

    - A safetensors file, or a Hugging Face folder or index of several: a flat dict by name.
    - An orbax folder: its tree. Of a folder of steps, as a `CheckpointManager` writes them, the
      latest; `find_checkpoint` says which. Flax NNX's states come back as their pure dicts, typed
      keys as their `jax.random.key_data`. It does not matter on which devices it was written.
    - A `.npz` file: a flat dict. A file of `flax.serialization`: its nested dicts.
    - A `.jpq` file: the weights that it stands for.

    Nothing in a file is executed: no pickle is read.

    Args:
      path: of the file or folder.
      lazy: leave what is in safetensors files there: leaves are `StoredLeaf`, of which `compress`
        holds one at a time.
      only: read what is under this name, such as "params" of a training state, or the item of an
        orbax folder with several.

    Raises:
      ValueError: naming the path, if it is none of these, damaged, unfinished, has nothing of this
        name, or needs a package that is not installed.
      OSError: if it cannot be read.
    """
    place = Path(path)
    if not place.is_dir():
        tree = _read_file(place)
    elif (tensors := find_tensors(place)) is not None:
        tree = _read_file(tensors)
    elif orbax.is_checkpoint(place):
        return orbax.read(place, only)
    else:
        raise refused_folder(place)
    if only is not None:
        try:
            tree = subtree(tree, only)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return tree if lazy else jax.tree.map(_as_array, tree)


def find_checkpoint(path: str | os.PathLike[str], *, only: str | None = None) -> Path:
    """The file or folder that `read_checkpoint` reads.

    That is the index of a Hugging Face folder, and of an orbax folder the item, of the latest step.

    Raises:
      ValueError, OSError: as `read_checkpoint` does; nothing is read as yet.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    if (tensors := find_tensors(place)) is not None:
        return tensors
    if orbax.is_checkpoint(place):
        return orbax.find_item(place, only).path
    raise refused_folder(place)


def _read_file(path: Path) -> PyTree:
    with path.open("rb") as file:
        head = file.read(HEAD)
    for is_such, read in _READERS:
        if is_such(path, head):
            return read(path)
    raise refused_file(path, head)


def _read_ours(path: Path) -> PyTree:
    return dequantize(artifact.load(path).codes)


_READERS: list[tuple[Callable[[Path, bytes], bool], Callable[[Path], PyTree]]] = [
    (lambda _, head: head.startswith(MAGIC), _read_ours),
    (lambda _, head: is_safetensors(head), stored),
    (lambda _, head: is_index(head), stored_by_index),
    (npz.is_npz, npz.read),
    # HDF5 begins like msgpack, too.
    (lambda _, head: flax_msgpack.is_msgpack(head) and not by_sign(head), flax_msgpack.read),
]


def _as_array(leaf: object) -> object:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
