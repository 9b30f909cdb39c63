"""Safetensors files: leaves that stay there until they are asked for, and trees written as such."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jpq_jax.artifact.file import write_whole
from jpq_jax.names import module_and_kind, parts, repeated, tensor_names
from jpq_jax.vocabulary import PyTree, is_codes

_LENGTH = 8  # bytes of a file that say how long its header is
_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
    "C64": np.complex64,  # of 64 bits in all
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
# The format has F4, F6_E2M3 and F6_E3M2, too, but does not say in which order they lie in a byte.
_NAMES = [np.dtype(dtype).name for dtype in _DTYPES.values()]

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
        """`count` elements in C order. Raises ValueError if the file has become shorter."""
        # Not through a map of the file, whose pages would count as memory beside the array.
        stored, offset = self.dtype.newbyteorder("<"), self.offset + first * self.dtype.itemsize
        array = np.fromfile(self.path, stored, count, offset=offset)
        if array.size != count:
            raise ValueError(f"{self.path}: leaf {self.name!r}: the file has become shorter")
        return array.astype(self.dtype, copy=False)


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins like one: with a length of less than 4 GB, then JSON."""
    return head[4:_LENGTH] == bytes(4) and head[_LENGTH : _LENGTH + 1] == b"{"


def stored(path: Path) -> dict[str, StoredLeaf]:
    """Raises ValueError, naming the path, for what is damaged or has a dtype that NumPy lacks."""
    try:
        with safe_open(path, "np"), path.open("rb") as file:  # which checks the header
            length = int.from_bytes(file.read(_LENGTH), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        raise ValueError(f"{path}: a damaged safetensors file: {error}") from error
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


def write_safetensors(
    path: str | os.PathLike[str], params: PyTree, *, pytorch: bool = False
) -> int:
    """Writes a tree's leaves as a safetensors file, whole or not at all.

    A leaf's name is its keys as they are, joined by ".". So a flat dict keeps its names, with "/"
    and ".", and what `read_checkpoint` gives of a safetensors file is written as it was.

    Args:
      path: of the file; its folder must exist.
      params: arrays.
      pytorch: whether to turn Flax's names and layouts into PyTorch's: `kernel` becomes `weight`,
        with its last two axes first and outputs before inputs, `scale` and `embedding` become
        `weight`, `mean` and `var` `running_mean` and `running_var`; "/" becomes ".".

    Returns:
      The size of the file in bytes.

    Raises:
      ValueError: naming the leaf, if two would have one name, or for a dtype that the format lacks;
        nothing is written.
      OSError: if the file cannot be written.
    """
    leaves = tensor_names(params)
    for name, leaf in leaves:
        _check_dtype(name, leaf)
    if pytorch:
        leaves = _in_pytorch(leaves)
    tensors = {name: _in_c_order(leaf) for name, leaf in leaves}
    data = save(tensors)
    write_whole(Path(path), data)
    return len(data)


def _check_dtype(name: str, leaf: Any) -> None:
    if is_codes(leaf):
        raise ValueError(f"leaf {name!r}: got Codes, expected an array: see `dequantize`")
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if dtype.name in _NAMES:
        return
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"leaf {name!r}: got typed keys, expected arrays: see `jax.random.key_data`"
        )
    raise ValueError(
        f"leaf {name!r}: got dtype {dtype.name}, which safetensors lacks, expected one of "
        f"{', '.join(_NAMES)}: cast it to one that holds its values, such as int8 for int4"
    )


def _in_c_order(leaf: Any) -> np.ndarray:
    """As `save` wants them: it takes memory as it lies."""
    array = np.asarray(leaf)
    return np.ascontiguousarray(array).reshape(array.shape)


def _in_pytorch(leaves: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Raises ValueError if two get one name."""
    renamed = [(_pytorch_name(name), _pytorch_layout(name, leaf)) for name, leaf in leaves]
    for name in repeated(name for name, _ in renamed):
        theirs = [old for old, _ in leaves if _pytorch_name(old) == name]
        raise ValueError(f"leaf {theirs[0]!r}: got {theirs}, which PyTorch all calls {name!r}")
    return renamed


def _pytorch_name(name: str) -> str:
    module, kind = module_and_kind(name)
    renamed = _PYTORCH_NAMES.get(kind, kind)
    return ".".join([*parts(module), renamed]) if module else renamed


def _pytorch_layout(name: str, leaf: Any) -> Any:
    if module_and_kind(name)[1] != "kernel" or np.ndim(leaf) < 2:
        return leaf
    tensor = np.asarray(leaf)
    return tensor.transpose(tensor.ndim - 1, tensor.ndim - 2, *range(tensor.ndim - 2))
