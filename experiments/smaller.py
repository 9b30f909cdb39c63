"""A model with fewer channels to start from: those that matter least are taken out until so much of the computation is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import jpq_jax
from experiments.config import Config
from experiments.data import Dataset
from experiments.model import Model, refilled
from jpq_jax.policy.network import costs, network_of

_IMAGES = 1_000  # of the training images, that the search looks at
_FILE = "smaller.jpq"


def smaller(
    config: Config, model: Model, dataset: Dataset, workdir: Path, console: Console
) -> Model:
    """The model with a share of its multiplications, `config.macs`; found once, and kept in the work directory.

    Channels of a residual stream stay: the model's own code adds and pads them.
    """
    path = workdir / _FILE
    if not path.exists():
        jpq_jax.artifact.save(path, _searched(config, model, dataset, console))
    return refilled(model, jpq_jax.artifact.load(path).codes)


def _searched(config: Config, model: Model, dataset: Dataset, console: Console) -> Any:
    images, labels = (jnp.asarray(x) for x in next(iter(dataset.train.batches(_IMAGES))))
    share = config.macs or 1.0
    example = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    network = network_of(model.logits, model.variables, example)
    whole = costs(network, jnp.full(len(network.slot_of), 8, jnp.int32))
    found = jpq_jax.find_policy(
        model.logits,
        model.variables,
        example,
        lambda variables: model.right(variables, dataset, images, labels) / len(labels),
        cost="macs",
        limit=share * float(whole.macs),
        evaluations=config.evaluations,
        seed=config.seed,
        shared=False,
    )
    shrunk = jpq_jax.shrink(model.logits, found.params, example)
    console.print(
        f"{float(found.costs.macs) / 1e6:.2f} of {float(whole.macs) / 1e6:.2f} M multiplications are left, "
        f"at {100 * found.accuracy:.2f} % on {len(labels)} training images, before more training"
    )
    return shrunk.params
