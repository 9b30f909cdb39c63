"""python -m experiments.ablations: each extra of Ye et al., 2018 (arXiv 1811.01907), on LeNet-5: with it, and without it.

Both in the same number of epochs, from the same dense model, for several seeds. What is measured is accuracy on the
validation split, of the params as `finalize` makes them; the test images are not touched. A run that was stopped goes on.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.config import Config
from experiments.data import Dataset, load
from experiments.files import read_found, write_json
from experiments.model import Model, accuracy, build, joined
from experiments.provenance import provenance
from experiments.publish import RESULTS
from experiments.training import Trained, epoch_function
from jpq_jax.recipe import Stage, projected, started

_KEEP = 0.006  # of the weights
_BITS = 1
_RHO = 0.03
_FIRM_RHO = 0.3  # by which ADMM comes to rest in a few epochs
_RATE = 0.02
_DENSE_RATE = 0.05
_CLIP = 1.0  # of the gradient's norm: plain SGD at these rates diverges
_PROJECTIONS = 4  # in an epoch
_SIDES = ("with", "without")
_CONFIG = Config(method="ye", density=_KEEP, bits=_BITS, batch_size=128, epochs=8)


class Ablation(NamedTuple):
    """Attributes:
    name: of the extra.
    extra: the stages with it.
    plain: the stages without, of as many steps in all.
    """

    name: str
    extra: list[Stage]
    plain: list[Stage]


def _sgd(rate: Any) -> optax.GradientTransformation:
    return optax.chain(_clip(), optax.sgd(rate, momentum=0.9))


def _clip() -> optax.GradientTransformation:
    return optax.clip_by_global_norm(_CLIP)


def ablations(steps: int, epochs: int) -> list[Ablation]:
    """steps: optimizer steps in an epoch. epochs: of a run, a multiple of 4."""
    total, half, quarter = epochs * steps, epochs * steps // 2, epochs * steps // 4
    sgd = _sgd(_RATE)
    mask = jpq_jax.mask_updates()
    keep, values = jpq_jax.pruning(_KEEP), jpq_jax.clustering(_BITS, zero=False)
    nearest = max(steps // _PROJECTIONS, 1)

    def toward(planner: Any, rho: Any = _RHO) -> optax.GradientTransformationExtraArgs:
        # What is clipped is the loss's gradient, and not the pull.
        pulled = jpq_jax.admm_to(planner, rho=rho, every=nearest)
        return optax.chain(_clip(), pulled, optax.sgd(_RATE, momentum=0.9))

    def settled(state: Any) -> jax.Array:
        return jpq_jax.has_converged(optax.tree.get(state, "SplitState"), relative=0.2)

    def freezing(share: Any) -> optax.GradientTransformationExtraArgs:
        return optax.chain(sgd, jpq_jax.freeze_shares(values, share, every=nearest))

    def frozen_by(count: Any) -> jax.Array:
        eighth = 8 * count // half
        return jnp.where(eighth < 7, 1 - 0.5 ** (1 + eighth), 1.0)

    def less_and_less(count: Any) -> jax.Array:
        return 8.0 * 0.5 ** jnp.minimum(4 * count // half, 3)

    rising = optax.exponential_decay(_RHO / 10**0.5, half // 4, 10 ** (1 / 3), staircase=True)
    prune = Stage("prune", half, toward(keep))
    firm = Stage("prune", half, toward(keep, _FIRM_RHO))
    # Prunes nothing more, and tells `finalize` of the plan.
    still = jpq_jax.project_params(keep, every=nearest)
    retrain = Stage("retrain", half, optax.chain(sgd, mask, still), inherit=projected)
    cluster = Stage("cluster", half, toward(values))
    by_clusters = Stage(
        "retrain clusters", half, optax.chain(sgd, jpq_jax.cluster_updates()), inherit=projected
    )
    gradual = jpq_jax.pruning(_KEEP, keep_schedule=less_and_less)
    fixed = jpq_jax.clustering(_BITS, zero=False, refit=False)
    in_stages = [
        prune._replace(steps=quarter),
        retrain._replace(steps=quarter),
        cluster._replace(steps=quarter, optimizer=optax.chain(toward(values), mask)),
        by_clusters._replace(steps=quarter),
    ]
    both = jpq_jax.joint(jpq_jax.Budget(ratio=32 / (_KEEP * _BITS)))
    return [
        Ablation("masked retraining", [prune, retrain], [prune._replace(steps=total)]),
        Ablation(
            "progressive pruning",
            [prune._replace(optimizer=toward(gradual)), retrain],
            [prune, retrain],
        ),
        Ablation(
            "rho schedule",
            [prune._replace(optimizer=toward(keep, rising)), retrain],
            [prune, retrain],
        ),
        Ablation(
            "stopping rule",
            [firm._replace(steps=total - steps, until=settled), retrain],
            [firm, retrain],
        ),
        Ablation("centroid updating", [cluster], [cluster._replace(optimizer=toward(fixed))]),
        Ablation(
            "weight clustering retraining", [cluster, by_clusters], [cluster._replace(steps=total)]
        ),
        Ablation(
            "iterative quantization and retraining",
            [Stage("freeze", half, freezing(frozen_by)), by_clusters],
            [Stage("freeze", half, freezing(1.0)), by_clusters],
        ),
        Ablation("both at once", [Stage("both", half, toward(both)), by_clusters], in_stages),
    ]


Run = Callable[[Trained, int], Trained]


def _runner(model: Model, dataset: Dataset, optimizer: Any, key: jax.Array) -> Run:
    """(trained, epoch) -> trained, an epoch later."""
    part: Any = dataset.train  # which is held
    images, labels = jnp.asarray(part.images), jnp.asarray(part.labels)
    run = epoch_function(model, dataset, _CONFIG, optimizer)

    def one(trained: Trained, epoch: int) -> Trained:
        own = jax.random.fold_in(key, epoch)
        return run(jax.tree.map(jnp.copy, trained), images, labels, own)[0]  # which it takes

    return one


def dense(model: Model, dataset: Dataset, epochs: int, key: jax.Array) -> Any:
    """Params of the dense model."""
    steps = epochs * (dataset.train.size // _CONFIG.batch_size)
    sgd = _sgd(optax.cosine_decay_schedule(_DENSE_RATE, steps))
    run = _runner(model, dataset, sgd, key)
    trained = Trained(model.params, model.statistics, sgd.init(model.params))
    for epoch in range(epochs):
        trained = run(trained, epoch)
    return trained.params


def compressed(
    model: Model,
    params: Any,
    stages: Sequence[Stage],
    dataset: Dataset,
    epochs: int,
    key: jax.Array,
) -> tuple[Any, list[int]]:
    """Codes after so many epochs, and how many each stage had; the last has those, too, that one which ended early did not take."""
    steps = dataset.train.size // _CONFIG.batch_size
    (stage, *later), done, had = stages, 0, []
    trained = Trained(params, model.statistics, stage.optimizer.init(params))
    run = _runner(model, dataset, stage.optimizer, key)
    for epoch in range(epochs):
        settled = stage.until is not None and bool(stage.until(trained.opt_state))
        if later and (settled or done == stage.steps // steps):
            had.append(done)
            (stage, *later), done = later, 0
            params, state = started(stage, trained.params, trained.opt_state)
            trained = trained._replace(params=params, opt_state=state)
            run = _runner(model, dataset, stage.optimizer, key)
        trained, done = run(trained, epoch), done + 1
    return jpq_jax.finalize(trained.params, trained.opt_state), [*had, done]


Found = dict[str, dict[str, Any]]
"""For each extra, side and seed: accuracy, and the epochs of each stage."""


def _rows(found: Found, seeds: int) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(key.split("/")[0] for key in found):
        runs = {side: [found[f"{name}/{side}/{i}"] for i in range(seeds)] for side in _SIDES}
        reached = {side: [run["accuracy"] for run in of_side] for side, of_side in runs.items()}
        gains = [a - b for a, b in zip(*reached.values(), strict=True)]
        epochs = {f"epochs_{side}": [run["epochs"] for run in runs[side]] for side in _SIDES}
        rows.append({"extra": name, **reached, **epochs, "median_gain": statistics.median(gains)})
    return rows


def main(
    seeds: int = 3,
    epochs: int = 8,
    dense_epochs: int = 5,
    train_images: int = 20_000,
    workdir: Path = Path("work/ablations"),
) -> int:
    """Measures every extra, prints a table, writes experiments/results/ablations.json.

    Args:
      seeds: how many, of the dense model and of what follows.
      epochs: of each run, a multiple of 4.
      dense_epochs: of the dense model.
      train_images: the first so many.
      workdir: for what is found so far; of one command.
    """
    console = Console()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "found.json"
    settings = {
        "keep": _KEEP,
        "bits": _BITS,
        "rho": _RHO,
        "firm_rho": _FIRM_RHO,
        "learning_rate": _RATE,
        "dense_learning_rate": _DENSE_RATE,
        "clip": _CLIP,
        "projections": _PROJECTIONS,
        "epochs": epochs,
        "dense_epochs": dense_epochs,
        "train_images": train_images,
    }
    found: Found = read_found(path, settings) or {}
    dataset = load("mnist", None).with_train_images(train_images)
    for seed in range(seeds):
        model = build("lenet5", seed)
        for_dense, for_compressed = jax.random.split(jax.random.key(seed))
        params = dense(model, dataset, dense_epochs, for_dense)
        for ablation in ablations(train_images // _CONFIG.batch_size, epochs):
            for side, stages in zip(_SIDES, ablation[1:], strict=True):
                key = f"{ablation.name}/{side}/{seed}"
                if key in found:
                    continue
                codes, had = compressed(model, params, stages, dataset, epochs, for_compressed)
                variables = joined(jpq_jax.dequantize(codes), model.statistics)
                reached = accuracy(model, variables, dataset, dataset.validation)
                found[key] = {"accuracy": reached, "epochs": had}
                write_json(path, {"settings": settings, "found": found})
                console.print(f"{key}: {100 * reached:.2f} %, epochs {had}")
    rows = _rows(found, seeds)
    table = Table(title=f"LeNet-5, {epochs} epochs of {train_images} images, validation accuracy")
    for column in ("extra", *_SIDES, "gain, points"):
        table.add_column(column, justify="right")
    for row in rows:
        each = [f"{100 * statistics.median(row[side]):.2f} %" for side in _SIDES]
        table.add_row(row["extra"], *each, f"{100 * row['median_gain']:+.2f}")
    console.print(table)
    write_json(RESULTS / "ablations.json", {**settings, "rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.ablations"))
