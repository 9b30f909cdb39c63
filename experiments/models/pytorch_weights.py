"""Starts a model from a safetensors file in PyTorch's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

# LeNet-5: (our module, theirs).
_LENET5 = (
    ("conv1", "features.0"),
    ("conv2", "features.2"),
    ("fc1", "classifier.0"),
    ("fc2", "classifier.2"),
)
_CONV2_MAP = (50, 4, 4)  # channels, rows and columns that PyTorch flattens before fc1


def load_lenet5(path: str | Path, params: nnx.State) -> nnx.State:
    """The params of `LeNet5` with the values of the file.

    Convolutions turn from OIHW to HWIO, dense layers from [out, in] to [in, out]; the inputs of fc1 from
    channel-first to channel-last order.

    Raises:
      ValueError: not a safetensors file, or a tensor that is missing or has the wrong shape; names it.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    new = {}
    for ours, theirs in _LENET5:
        kernel = _tensor(path, tensors, f"{theirs}.weight")
        new[ours] = {
            "kernel": _to_flax(ours, kernel),
            "bias": _tensor(path, tensors, f"{theirs}.bias"),
        }
    return _filled(path, params, new)


def _tensor(path: str | Path, tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{path}: has no tensor {name!r}, only {sorted(tensors)}")
    return tensors[name]


def _to_flax(layer: str, kernel: np.ndarray) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    if layer == "fc1" and kernel.shape[1] == np.prod(_CONV2_MAP):
        kernel = kernel.reshape(-1, *_CONV2_MAP).transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    return kernel.T


def _filled(path: str | Path, params: nnx.State, new: Mapping) -> nnx.State:
    def put(keys: tuple, old: jax.Array) -> jax.Array:
        layer, kind = keys[0].key, keys[1].key
        value = new[layer][kind]
        if value.shape != old.shape:
            raise ValueError(f"{path}: {layer}/{kind}: got {value.shape}, expected {old.shape}")
        return jnp.asarray(value, old.dtype)

    return jax.tree_util.tree_map_with_path(put, params)
