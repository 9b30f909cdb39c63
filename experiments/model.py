"""A model as pure functions of its params, by name, and how accurate it is."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import ModelName
from experiments.data import Dataset, Split, normalize
from experiments.models.lenet5 import LeNet5

_EVALUATION_BATCH = 1000


class Model(NamedTuple):
    """Attributes:
    graph: the static structure, without arrays.
    params: what is trained and compressed, an `nnx.State` of arrays.
    """

    graph: nnx.GraphDef
    params: nnx.State

    def logits(self, params: Any, images: jax.Array) -> jax.Array:
        """images: [N, H, W, C] float32, normalized. Returns [N, classes]."""
        return nnx.merge(self.graph, params)(images)


def build(name: ModelName, seed: int) -> Model:
    """A model with initial weights; the same seed gives the same ones."""
    model = LeNet5(relu=name == "lenet5_relu", rngs=nnx.Rngs(seed))
    return Model(*nnx.split(model, nnx.Param))


def accuracy(model: Model, params: Any, dataset: Dataset, split: Split) -> float:
    """The share of a split's images that the model gets right, exactly counted."""
    total = 0
    for start in range(0, len(split.labels), _EVALUATION_BATCH):
        batch = slice(start, start + _EVALUATION_BATCH)
        images, labels = split.images[batch], split.labels[batch]
        total += int(_right(model.graph, dataset.mean, dataset.std, params, images, labels))
    return total / len(split.labels)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _right(
    graph: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    params: Any,
    images: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    logits = nnx.merge(graph, params)(normalize(images, mean, std))
    return jnp.sum(jnp.argmax(logits, axis=1) == labels)
