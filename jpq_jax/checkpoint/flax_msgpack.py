"""Files of `flax.serialization`: nested dicts in msgpack, arrays as extensions of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from jpq_jax.vocabulary import PyTree

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # kinds of extensions
# An array above 1 GiB is a dict with this key, its shape and its chunks.
_CHUNKED = "__msgpack_chunked_array__"


def is_msgpack(head: bytes) -> bool:
    """Whether a file begins like a dict in msgpack that has entries."""
    return bool(head) and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))


def read(path: Path) -> PyTree:
    """The tree of a file; strings in it are refused.

    Raises:
      ValueError: naming the path, if it is damaged, holds other than numbers, or `msgpack` is not
        installed.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ValueError(
            f"{path}: to read Flax's msgpack files, install jpq_jax[msgpack]"
        ) from error
    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=lambda kind, data: _extension(msgpack, kind, data),
            strict_map_key=False,
        )
        return _arrays(tree, "")
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise ValueError(
            f"{path}: got a damaged or other msgpack file than Flax's: {error}"
        ) from error


def _extension(msgpack: ModuleType, kind: int, data: bytes) -> Any:
    if kind == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if kind not in (_ARRAY, _SCALAR):
        raise ValueError(f"got an extension of kind {kind}, expected 1 to 3")
    shape, name, values = msgpack.unpackb(data)
    return np.frombuffer(values, _dtype(name)).reshape(shape)


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def _arrays(node: Any, name: str) -> PyTree:
    if isinstance(node, dict):
        if _CHUNKED in node:
            return _joined(node)
        if len({type(key) for key in node}) > 1:
            raise ValueError(f"{name or 'root'}: got keys {list(node)}, expected all of one type")
        return {key: _arrays(child, f"{name}/{key}") for key, child in node.items()}
    if isinstance(node, list):
        return [_arrays(child, f"{name}/{i}") for i, child in enumerate(node)]
    if node is None:
        return None
    array = np.asarray(node)
    if array.dtype.kind not in "biufcV":
        raise ValueError(f"leaf {name[1:]!r}: got {type(node).__name__}, expected numbers")
    return array


def _joined(node: dict[str, Any]) -> np.ndarray:
    shape, chunks = (
        [node[part][str(i)] for i in range(len(node[part]))] for part in ("shape", "chunks")
    )
    return np.concatenate(chunks).reshape(shape)
