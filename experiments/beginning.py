"""What a run begins with, where a search comes before training: a model with fewer channels, and the bits of those that are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jpq_jax
from experiments import processes
from experiments.config import Config
from experiments.data import Dataset
from experiments.model import Model, refilled
from experiments.plots import draw_policy
from experiments.progress import progress_bar
from jpq_jax.plan import compressed_leaves
from jpq_jax.policy.decisions import Cost
from jpq_jax.policy.find import Progress
from jpq_jax.policy.network import costs, network_of

Bits = dict[str, Any]
"""For each kernel by its path, the bits of each channel."""

_IMAGES = 1_000  # of the training images, that a search looks at
_BATCH = 125  # of them at once
_FILE = "beginning.jpq"


class Beginning(NamedTuple):
    """Attributes:
    model: to train.
    bits: that it is trained under; None where no search has found any.
    """

    model: Model
    bits: Bits | None


def beginning_of(
    config: Config, model: Model, dataset: Dataset, workdir: Path, console: Console
) -> Beginning:
    """The model as it is, unless the config asks for a search, whose outcome is kept in the work directory.

    With `macs`, channels go until that share of the multiplications is left; by the method "channelwise", each channel then gets bits,
    or none, under the budget in bits. Channels of a residual stream stay: the model's own code adds and pads them.
    """
    if not config.macs and config.method != "channelwise":
        return Beginning(model, None)
    path = workdir / _FILE
    if processes.is_first() and not path.exists():
        found = _searched(config, model, dataset, workdir, console)
        told = {k: np.asarray(v).tolist() for k, v in (found.bits or {}).items()}
        jpq_jax.artifact.save(path, found.model.variables, {"bits": told})
    processes.wait_for_all("beginning")
    variables, facts, _ = jpq_jax.artifact.load(path)
    bits = {k: np.asarray(v, np.int32) for k, v in facts["bits"].items()}
    return Beginning(refilled(model, variables), bits or None)


def _searched(
    config: Config, model: Model, dataset: Dataset, workdir: Path, console: Console
) -> Beginning:
    found = Beginning(model, None)
    if config.macs:
        image = next(iter(dataset.train.batches(1))).images
        network = network_of(model.logits, model.variables, _example(image))
        whole = float(costs(network, jnp.full(len(network.slot_of), 8, jnp.int32)).macs)
        limit = config.macs * whole
        found = _shrunk(config, model, dataset, "macs", limit, workdir / "channels.png", console)
    if config.method != "channelwise":
        return found._replace(bits=None)
    limit = weight_bits(model, config.ratio or 1)
    return _shrunk(config, found.model, dataset, "bits", limit, workdir / "policy.png", console)


def search(
    model: Model,
    dataset: Dataset,
    cost: Cost,
    limit: float,
    config: Config,
    *,
    renormed: bool,
    progress: Progress | None = None,
) -> jpq_jax.Policy:
    """With some training images; only channels that a layer has for itself may go.

    renormed: whether norms go by the statistics of what is tried, as they will in the training to come (after EagleEye, Li et al., 2020,
      arXiv 2007.02491), and not by those of the trained model.
    """
    number = min(_IMAGES, dataset.train.size)
    number = number // _BATCH * _BATCH or number
    images, labels = (
        jnp.asarray(x) for x in next(iter(dataset.train.some(number).batches(number)))
    )
    parts = [x.reshape(-1, min(number, _BATCH), *x.shape[1:]) for x in (images, labels)]
    of_part = model.right_in_training if renormed else model.right

    def right(variables: Any) -> jax.Array:
        each = jax.lax.map(lambda part: of_part(variables, dataset, *part), tuple(parts))
        return jnp.sum(each) / number

    return jpq_jax.find_policy(
        model.logits,
        model.variables,
        _example(images),
        right,
        cost=cost,
        limit=limit,
        evaluations=config.evaluations,
        seed=config.seed,
        method=config.search,
        multiple=config.multiple,
        empty=config.empty and cost == "macs",
        shared=False,
        progress=progress,
    )


def weight_bits(model: Model, ratio: float) -> float:
    """A budget of bits of all kernels' weights, by compression against float32."""
    kernels = compressed_leaves(model.params, jpq_jax.plan_leaves(model.params))
    return 32 * sum(kernel.size for kernel in kernels) / ratio


def _shrunk(
    config: Config,
    model: Model,
    dataset: Dataset,
    cost: Cost,
    limit: float,
    figure: Path,
    console: Console,
) -> Beginning:
    with progress_bar(console) as progress:
        bar = progress.add_task(f"searching, {cost}", total=config.evaluations)
        found = search(
            model,
            dataset,
            cost,
            limit,
            config,
            renormed=True,
            progress=lambda tried: progress.update(bar, completed=tried),
        )
    console.print(
        f"{float(getattr(found.costs, cost)):,.0f} of at most {limit:,.0f} {cost}, by {config.search}: "
        f"{100 * found.accuracy:.2f} % of the training images looked at are right before more training"
    )
    draw_policy(found.bits, {config.search: found.rewards.at[: found.sensed].set(jnp.nan)}, figure)
    image = next(iter(dataset.train.batches(1))).images
    shrunk = jpq_jax.shrink(model.logits, found.params, _example(image), empty=config.empty)
    kernels = dict(jpq_jax.leaves_with_paths(shrunk.params))
    left = {
        path: np.asarray(bits)[shrunk.kept[path][-1]]
        for path, bits in found.bits.items()
        if kernels[path].size
    }
    return Beginning(refilled(model, shrunk.params), left)


def _example(images: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
