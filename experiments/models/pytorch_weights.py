"""Starts a model from a safetensors file in PyTorch's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

import jpq_jax
from experiments.config import ModelName
from experiments.model import Model

# Our module's name and theirs, by model.
_LENET5 = {
    "conv1": "features.0",
    "conv2": "features.2",
    "fc1": "classifier.0",
    "fc2": "classifier.2",
}
_RESNET20 = {name: name for name in ("conv1", "bn1", "linear")} | {
    f"blocks/{i}/{part}": f"layer{1 + i // 3}.{i % 3}.{part}"
    for i in range(9)
    for part in ("conv1", "bn1", "conv2", "bn2")
}
_NAMES: Mapping[ModelName, Mapping[str, str]] = {
    "lenet5": _LENET5,
    "lenet5_relu": _LENET5,
    "resnet20": _RESNET20,
}
_KINDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_LENET5_CONV2_MAP = (50, 4, 4)  # channels, rows and columns that PyTorch flattens before fc1


def load_pytorch(name: ModelName, path: str | Path, model: Model) -> Model:
    """The model with the values of the file.

    Convolutions turn from OIHW to HWIO, dense layers from [out, in] to [in, out]; the inputs of LeNet-5's fc1 from
    channel-first to channel-last order.

    Raises:
      ValueError: not a safetensors file, or a tensor that is missing or has the wrong shape; names it.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error

    def value(place: str, old: jax.Array) -> jax.Array:
        layer, _, kind = place.rpartition("/")
        theirs = f"{_NAMES[name][layer]}.{_KINDS[kind]}"
        if theirs not in tensors:
            raise ValueError(f"{path}: has no tensor {theirs!r}, only {sorted(tensors)}")
        new = _to_flax(layer, tensors[theirs])
        if new.shape != old.shape:
            raise ValueError(f"{path}: {place}: got {new.shape}, expected {old.shape}")
        return jnp.asarray(new, old.dtype)

    def filled(tree: Any) -> Any:
        leaves = [value(*leaf) for leaf in jpq_jax.leaves_with_paths(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    return model._replace(params=filled(model.params), statistics=filled(model.statistics))


def _to_flax(layer: str, tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if layer == "fc1" and tensor.ndim == 2 and tensor.shape[1] == np.prod(_LENET5_CONV2_MAP):
        channel_first = tensor.reshape(-1, *_LENET5_CONV2_MAP)
        tensor = channel_first.transpose(0, 2, 3, 1).reshape(len(tensor), -1)
    return tensor.T
