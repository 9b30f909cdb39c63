"""A model as pure functions of its params, by name, and how accurate it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jpq_jax
from experiments.config import ModelName
from experiments.data import Dataset, Part, Split, normalize
from experiments.models.alexnet import AlexNet
from experiments.models.lenet5 import LeNet5, Units, narrowed
from experiments.models.lenet300 import LeNet300
from experiments.models.mobilenet import MobileNetV1
from experiments.models.resnet20 import ResNet20
from experiments.models.resnet50 import ResNet50
from experiments.models.vgg16 import VGG16, VGG16ForCifar10

_EVALUATION_BATCH = 125  # on a CPU nearly twice as fast as 1000


_MODELS: dict[ModelName, Callable[..., nnx.Module]] = {
    "lenet5": functools.partial(LeNet5, relu=False),
    "lenet5_relu": functools.partial(LeNet5, relu=True),
    "lenet300": LeNet300,
    "resnet20": ResNet20,
    "resnet50": functools.partial(ResNet50, cifar10=False),
    "resnet50_cifar10": functools.partial(ResNet50, cifar10=True),
    "alexnet": AlexNet,
    "vgg16": VGG16,
    "vgg16_cifar10": VGG16ForCifar10,
    "mobilenet": MobileNetV1,
}
_DROPPING = (AlexNet, VGG16)  # take a key


class Model(NamedTuple):
    """Attributes:
    graph: the static structure, without arrays.
    params: what is trained and compressed, an `nnx.State` of arrays.
    statistics: what the norms have seen, an `nnx.State`; empty in a model without.
    """

    graph: nnx.GraphDef
    params: nnx.State
    statistics: nnx.State

    @property
    def variables(self) -> Any:
        return joined(self.params, self.statistics)

    def seen(
        self, params: Any, statistics: Any, images: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """In training: [N, classes] logits, and the statistics after this batch.

        images: [N, H, W, C] float32, normalized; key: for dropout, in models that have it.
        """
        # Copied into this trace, in which the statistics change.
        model = nnx.merge(self.graph, params, statistics, copy=True)
        model.train()
        dropping = {"key": key} if isinstance(model, _DROPPING) else {}
        return model(images, **dropping), nnx.state(model, nnx.BatchStat)

    def right(self, variables: Any, dataset: Dataset, images: Any, labels: Any) -> jax.Array:
        """How many of some images of a data set it gets right. images: [N, H, W, C] uint8."""
        return _right(self.graph, dataset.mean, dataset.std, variables, images, labels)

    def right_in_training(
        self, variables: Any, dataset: Dataset, images: Any, labels: Any
    ) -> jax.Array:
        """Likewise, with norms that go by the statistics of these images."""
        own = refilled(self, variables)
        shown = normalize(images, dataset.mean, dataset.std)
        logits, _ = self.seen(own.params, own.statistics, shown)
        return jnp.sum(jnp.argmax(logits, axis=1) == labels)

    def logits(self, variables: Any, images: jax.Array) -> jax.Array:
        """In use: [N, classes].

        variables: params and statistics, `joined`.
        images: [N, H, W, C] float32, normalized.
        """
        return _logits(self.graph, variables, images)


def _logits(graph: nnx.GraphDef, variables: Any, images: jax.Array) -> jax.Array:
    model = nnx.merge(graph, variables)
    model.eval()
    return model(images)


def joined(params: Any, statistics: Any) -> Any:
    """One tree of both, as a file has them. Either may be compressed."""
    return nnx.merge_state(params, statistics)


def build(name: ModelName, seed: int, units: Units | None = None) -> Model:
    """A model with initial weights; the same seed gives the same ones.

    units: of a LeNet-5 that is narrower than usual.
    """
    rngs = nnx.Rngs(seed)
    narrow = {} if units is None else {"units": units}
    model = _MODELS[name](rngs=rngs, **narrow)
    return Model(*nnx.split(model, nnx.Param, nnx.BatchStat))


def narrow(name: ModelName, model: Model, units: Units) -> Model:
    """The LeNet-5 that keeps so many units of this one, the strongest."""
    params = narrowed(nnx.to_pure_dict(model.params), units)
    template = build(name, 0, units)
    leaves = jax.tree.leaves(params)
    return template._replace(params=jax.tree.unflatten(jax.tree.structure(template.params), leaves))


def refilled(model: Model, variables: Any) -> Model:
    """The model with other arrays of the same names, perhaps of other shapes."""
    by_path = dict(jpq_jax.leaves_with_paths(variables))

    def taken(tree: Any) -> Any:
        leaves = [by_path[path] for path, _ in jpq_jax.leaves_with_paths(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    return model._replace(params=taken(model.params), statistics=taken(model.statistics))


def accuracy(model: Model, variables: Any, dataset: Dataset, split: Split | Part) -> float:
    """The share of a split's images that the model gets right, exactly counted.

    variables: params and statistics, `joined`.
    """
    total = 0
    for images, labels in split.batches(_EVALUATION_BATCH):
        total += int(model.right(variables, dataset, images, labels))
    return total / split.size


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _right(
    graph: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    logits = _logits(graph, variables, normalize(images, mean, std))
    return jnp.sum(jnp.argmax(logits, axis=1) == labels)
