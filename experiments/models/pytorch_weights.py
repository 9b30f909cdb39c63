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
_LENET300 = {"fc1": "fc1", "fc2": "fc2", "fc3": "fc3"}
_ALEXNET = {  # torchvision's
    f"conv{i}": f"features.{place}" for i, place in enumerate((0, 3, 6, 8, 10), 1)
} | {"fc1": "classifier.1", "fc2": "classifier.4", "fc3": "classifier.6"}
_VGG16 = {  # torchvision's vgg16
    f"convolutions/{i}": f"features.{place}"
    for i, place in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
} | {"fc1": "classifier.0", "fc2": "classifier.3", "fc3": "classifier.6"}
_VGG16_PLACES = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)  # in torchvision's vgg16_bn
_VGG16_CIFAR10 = (
    {f"convolutions/{i}": f"features.{place}" for i, place in enumerate(_VGG16_PLACES)}
    | {f"norms/{i}": f"features.{place + 1}" for i, place in enumerate(_VGG16_PLACES)}
    | {"linear": "classifier"}
)
_BLOCKS = [(stage, block) for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
_RESNET50 = {name: name for name in ("conv1", "bn1", "fc")} | {  # torchvision's
    f"blocks/{i}/{part}": f"layer{stage}.{block}.{theirs}"
    for i, (stage, block) in enumerate(_BLOCKS)
    for part, theirs in (
        *((f"{kind}{k}", f"{kind}{k}") for kind in ("conv", "bn") for k in (1, 2, 3)),
        ("conv", "downsample.0"),
        ("bn", "downsample.1"),
    )
}
_MOBILENET = {"conv": "model.0.0", "bn": "model.0.1", "fc": "fc"} | {
    f"blocks/{i}/{part}": f"model.{i + 1}.{place}"
    for i in range(13)
    for part, place in (("depthwise", 0), ("bn1", 1), ("pointwise", 3), ("bn2", 4))
}
_NAMES: Mapping[ModelName, Mapping[str, str]] = {
    "lenet5": _LENET5,
    "lenet5_relu": _LENET5,
    "lenet300": _LENET300,
    "resnet20": _RESNET20,
    "resnet50": _RESNET50,
    "resnet50_cifar10": _RESNET50,
    "alexnet": _ALEXNET,
    "vgg16": _VGG16,
    "vgg16_cifar10": _VGG16_CIFAR10,
    "mobilenet": _MOBILENET,
}
_KINDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Channels, rows and columns that PyTorch flattens before fc1.
_FLATTENED: Mapping[ModelName, tuple[int, int, int]] = {
    "lenet5": (50, 4, 4),
    "lenet5_relu": (50, 4, 4),
    "alexnet": (256, 6, 6),
    "vgg16": (512, 7, 7),
}


def load_pytorch(name: ModelName, path: str | Path, model: Model) -> Model:
    """The model with the values of the file.

    Convolutions turn from OIHW to HWIO, dense layers from [out, in] to [in, out]; the inputs of a dense layer after
    convolutions from channel-first to channel-last order.

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
        new = _to_flax(tensors[theirs], _FLATTENED.get(name) if layer == "fc1" else None)
        if new.shape != old.shape:
            raise ValueError(f"{path}: {place}: got {new.shape}, expected {old.shape}")
        return jnp.asarray(new, old.dtype)

    def filled(tree: Any) -> Any:
        leaves = [value(*leaf) for leaf in jpq_jax.leaves_with_paths(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    return model._replace(params=filled(model.params), statistics=filled(model.statistics))


def _to_flax(tensor: np.ndarray, flattened: tuple[int, int, int] | None) -> np.ndarray:
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if flattened and tensor.ndim == 2 and tensor.shape[1] == np.prod(flattened):
        channel_first = tensor.reshape(-1, *flattened)
        tensor = channel_first.transpose(0, 2, 3, 1).reshape(len(tensor), -1)
    return tensor.T
