"""The train loop: a dense stage, then the stages of a method of compression, epoch by epoch."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import jpq_jax
from experiments import checkpoints
from experiments.config import Config
from experiments.data import (
    Dataset,
    Part,
    normalize,
    random_flip,
    random_shift,
    random_turn,
)
from experiments.data.imagenet import batches as streamed_batches
from experiments.evaluate import count_kernels
from experiments.model import Model, accuracy, joined
from jpq_jax.plan import capacity, compressed_leaves
from jpq_jax.recipe import Stage, as_they_are, projected, started

History = list[dict[str, Any]]

DENSE = "dense"  # the name of the stage before compression
FINE_TUNE = "fine-tune"  # and of the last, where there is one
_REFITS = 20  # of the codebooks in an epoch of fine-tuning, as Yang et al. do
_PROJECTIONS = 4  # of ADMM toward a plan in an epoch
_SEEDS = 10_000  # more than there are epochs: each has a seed of its own
_RISES = 4  # of its rho in a stage, by the cube root of 10 each


class Snapshot(NamedTuple):
    """All that a run needs to go on.

    Attributes:
      params: the trained params.
      statistics: what the norms have seen.
      opt_state: the optimizer's state.
      baseline: params and statistics of the dense model that compression started from.
      best: codes and statistics of the epoch that is best on the validation split, of this stage, and if this is fine-tuning, of
        the one before; None in the dense stage.
      best_epoch: [] int32, counted from 1; 0 if there is none yet.
    """

    params: Any
    statistics: Any
    opt_state: Any
    baseline: Any
    best: Any
    best_epoch: jax.Array


class Trained(NamedTuple):
    """What a step changes; as in `Snapshot`."""

    params: Any
    statistics: Any
    opt_state: Any


def budget_of(config: Config, params: Any) -> jpq_jax.Budget:
    """The config's budget for a model."""
    if config.ratio is not None:
        return jpq_jax.Budget(ratio=config.ratio)
    if config.nbytes is not None:
        return jpq_jax.Budget(nbytes=config.nbytes)
    if config.density is None or config.bits is None:
        raise ValueError("the config has neither a ratio nor a density and bits")
    kernels = compressed_leaves(params, jpq_jax.plan_leaves(params))
    bits = config.bits * sum(math.ceil(config.density * kernel.size) for kernel in kernels)
    return jpq_jax.Budget(bits=bits)


def stages_of(config: Config, params: Any, steps: int) -> list[Stage]:
    """The stages of a run. steps: optimizer steps in an epoch."""
    stages = []
    if config.dense_epochs:
        schedule = _schedule(config.dense_learning_rate, steps, config.dense_epochs * steps)
        stages.append(
            Stage(DENSE, config.dense_epochs * steps, optax.chain(*_sgd(config, schedule)))
        )
    if config.method == "ye":
        return [*stages, *_ye(config, steps)]
    for density, bits in (*config.before, (config.density, config.bits)):
        budget = dataclasses.replace(config, density=density, bits=bits, before=())
        compression = _compression(budget, params, steps)
        stages.append(Stage("compress", config.epochs * steps, compression))
    if config.finetune_epochs:
        stages.append(_FINE_TUNING[config.method](config, steps))
    return stages


def _compression(config: Config, params: Any, steps: int) -> optax.GradientTransformationExtraArgs:
    schedule = _schedule(config.learning_rate, config.warmup_epochs * steps, config.epochs * steps)
    if config.method == "admm":
        compression = jpq_jax.admm(
            budget_of(config, params),
            rho=config.rho,
            every=steps,
            learning_rate=schedule,
            start_bits=config.bits or 3,
        )
        return optax.chain(*_sgd(config, schedule), compression)
    planner = _planner(config, params, steps)
    return jpq_jax.latent(
        _inner(config, schedule), planner, every=config.replan_every, pull=config.pull
    )


def _planner(config: Config, params: Any, steps: int) -> jpq_jax.Planner:
    if config.method == "clustering":
        return jpq_jax.clustering(config.bits or 1, zero=config.zero)
    if config.method == "pruning":
        keep = config.density or 1.0
        fall = optax.polynomial_schedule(
            1 / max(keep, 1e-9), 1.0, config.ramp_power, max(config.ramp_epochs, 1) * steps
        )
        return jpq_jax.pruning(keep, keep_schedule=fall if config.ramp_epochs else None)
    budget = budget_of(config, params)
    return jpq_jax.joint(budget, budget_schedule=_ramp(config, budget, params, steps))


def _ye(config: Config, steps: int) -> list[Stage]:
    """Prune, retrain what is left, cluster it, retrain the clusters (Ye et al., 2018, arXiv 1811.01907)."""
    each = max(config.epochs // 4, 1) * steps
    schedule = _schedule(config.learning_rate, 0, each)
    sgd = optax.chain(*_sgd(config, schedule))
    keep = jpq_jax.pruning(config.density or 1.0)
    values = jpq_jax.clustering(config.bits or 1, zero=False)

    def toward(planner: jpq_jax.Planner) -> optax.GradientTransformationExtraArgs:
        rho = optax.exponential_decay(config.rho, each // _RISES, 10 ** (1 / 3), staircase=True)
        return jpq_jax.admm_to(planner, rho=rho, every=max(steps // _PROJECTIONS, 1))

    mask = jpq_jax.mask_updates()
    retrain = optax.chain(sgd, mask, jpq_jax.project_params(keep, every=steps))
    return [
        Stage("prune", each, optax.chain(toward(keep), sgd)),
        Stage("retrain", each, retrain, inherit=projected),
        Stage("cluster", each, optax.chain(toward(values), sgd, mask)),
        Stage("retrain clusters", each, optax.chain(sgd, jpq_jax.cluster_updates()), projected),
    ]


def _ramp(config: Config, budget: jpq_jax.Budget, params: Any, steps: int) -> optax.Schedule | None:
    """From so many bits for every weight, along a polynomial."""
    if not config.ramp_epochs:
        return None
    plan = jpq_jax.plan_leaves(params)
    most = config.ramp_bits * sum(leaf.size for leaf in compressed_leaves(params, plan))
    limit = 8 * budget.nbytes if budget.nbytes else capacity(budget, params, plan)
    return optax.polynomial_schedule(
        max(most / max(limit, 1), 1.0), 1.0, config.ramp_power, config.ramp_epochs * steps
    )


def _inner(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    if config.optimizer == "adam":
        return optax.adam(schedule)
    return optax.chain(*_sgd(config, schedule))


def _retraining(config: Config, steps: int) -> tuple[int, list[optax.GradientTransformation]]:
    """Steps of fine-tuning, and the optimizer of them all."""
    total = config.finetune_epochs * steps
    return total, _sgd(config, _schedule(config.finetune_learning_rate, 0, total))


def _fine_tuning(
    config: Config, steps: int, bits: str, inherit: Callable[[Any, Any], Any]
) -> Stage:
    """With the support and the bit-widths held, straight through. bits: the field of the state that has them."""
    total, sgd = _retraining(config, steps)
    inner = optax.chain(*sgd, jpq_jax.mask_updates())
    held = jpq_jax.latent(inner, jpq_jax.clustering(1), every=max(steps // _REFITS, 1))
    return Stage(FINE_TUNE, total, held, inherit, {"clustered_bits": bits})


def _masked_retraining(config: Config, steps: int) -> Stage:
    total, sgd = _retraining(config, steps)
    keep = jpq_jax.project_params(jpq_jax.pruning(config.density or 1.0), every=steps)
    masked = optax.chain(*sgd, jpq_jax.mask_updates(), keep)
    return Stage(FINE_TUNE, total, masked, projected)


def _cluster_retraining(config: Config, steps: int) -> Stage:
    total, sgd = _retraining(config, steps)
    clusters = optax.chain(*sgd, jpq_jax.cluster_updates())
    return Stage(FINE_TUNE, total, clusters, projected)


_FINE_TUNING: dict[str, Callable[[Config, int], Stage]] = {
    "admm": functools.partial(_fine_tuning, bits="leaf_bits", inherit=as_they_are),
    # The joint method's params need not keep to the budget between two plans.
    "joint": functools.partial(_fine_tuning, bits="joint_leaf_bits", inherit=projected),
    "pruning": _masked_retraining,
    "clustering": _cluster_retraining,
}


def _schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    cosine = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    if warmup_steps == 0:
        return cosine
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, cosine], [warmup_steps])


def _sgd(config: Config, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    def kernels(params: Any) -> Any:
        compressed = [plan.compress for plan in jpq_jax.plan_leaves(params)]
        return jax.tree.unflatten(jax.tree.structure(params), compressed)

    clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    return [
        *clip,
        optax.add_decayed_weights(config.weight_decay, kernels),
        optax.sgd(schedule, momentum=config.momentum),
    ]


def step_function(
    model: Model,
    dataset: Dataset,
    config: Config,
    optimizer: optax.GradientTransformation,
    teacher: Any = None,
) -> Callable[..., tuple[Trained, jax.Array]]:
    """One step: (trained, images, labels, key) -> trained, and the loss.

    images: [N, H, W, C] uint8; they are shifted, flipped and normalized.
    teacher: variables of the dense model that is learned from, too (Hinton et al., 2015, arXiv 1503.02531); None for none.
    """
    loss = _loss_function(model, dataset, config.distill, teacher)

    def step(trained: Trained, images: jax.Array, labels: jax.Array, key: jax.Array):
        seen = _augmented(config, key, images)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, statistics), gradients = gradient(
            trained.params, trained.statistics, seen, labels, jax.random.fold_in(key, 3)
        )
        updates, opt_state = optimizer.update(gradients, trained.opt_state, trained.params)
        params = optax.apply_updates(trained.params, updates)
        return Trained(params, statistics, opt_state), value

    return step


def epoch_function(
    model: Model,
    dataset: Dataset,
    config: Config,
    optimizer: optax.GradientTransformation,
    teacher: Any = None,
) -> Callable[..., tuple[Trained, jax.Array]]:
    """One epoch: (trained, images, labels, key) -> trained, and the mean loss.

    images: [N, H, W, C] uint8, all of them on the device, where they are shuffled.
    """
    size = config.batch_size
    on_batch = step_function(model, dataset, config, optimizer, teacher)

    def batches(labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        order_key, augment_key = jax.random.split(key)
        steps = len(labels) // size
        order = jax.random.permutation(order_key, len(labels))[: steps * size]
        return order.reshape(steps, size), jax.random.split(augment_key, steps)

    def step(trained: Trained, batch: tuple[jax.Array, jax.Array], images: Any, labels: Any):
        chosen, key = batch
        return on_batch(trained, images[chosen], labels[chosen], key)

    def whole(trained: Trained, images: jax.Array, labels: jax.Array, key: jax.Array):
        def next_step(trained: Trained, batch: tuple[jax.Array, jax.Array]):
            return step(trained, batch, images, labels)

        trained, losses = jax.lax.scan(next_step, trained, batches(labels, key))
        return trained, jnp.mean(losses)

    one_step, all_batches = jax.jit(step, donate_argnums=0), jax.jit(batches)

    def by_steps(trained: Trained, images: jax.Array, labels: jax.Array, key: jax.Array):
        losses = []
        for batch in zip(*all_batches(labels, key), strict=True):
            trained, value = one_step(trained, batch, images, labels)
            losses.append(value)
        return trained, jnp.mean(jnp.stack(losses))

    return jax.jit(whole, donate_argnums=0) if config.whole_epoch else by_steps


def streamed_epoch_function(
    model: Model,
    dataset: Dataset,
    config: Config,
    optimizer: optax.GradientTransformation,
    teacher: Any = None,
) -> Callable[[Trained, Part, int, jax.Array], tuple[Trained, jax.Array]]:
    """One epoch of images that come from the host: (trained, part, seed, key) -> trained, and the mean loss.

    Every batch is shared out over all devices of all processes, each of which holds the params whole.

    Raises:
      ValueError: if the devices cannot share a batch.
    """
    size, devices = config.batch_size, jax.device_count()
    if size % devices:
        raise ValueError(f"got batches of {size} for {devices} devices, expected a multiple")
    mesh = jax.make_mesh((devices,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    shared, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("images"), PartitionSpec())
    )
    step = jax.jit(step_function(model, dataset, config, optimizer, teacher), donate_argnums=0)
    shard = jax.process_index(), jax.process_count()

    def epoch(trained: Trained, part: Part, seed: int, key: jax.Array):
        trained, losses = jax.device_put(trained, whole), []
        for i, batch in enumerate(streamed_batches(part, size, seed=seed, shard=shard)):
            own = [jax.make_array_from_process_local_data(shared, x) for x in batch]
            trained, value = step(trained, *own, jax.random.fold_in(key, i))
            losses.append(value)
        return trained, jnp.mean(jnp.stack(losses))

    return epoch


def _loss_function(
    model: Model, dataset: Dataset, distill: float, teacher: Any
) -> Callable[..., tuple[jax.Array, Any]]:
    share = 0.0 if teacher is None else distill

    def loss(params: Any, statistics: Any, images: jax.Array, labels: jax.Array, key: Any = None):
        images = normalize(images, dataset.mean, dataset.std)
        logits, statistics = model.seen(params, statistics, images, key)
        losses = (1 - share) * optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if share:
            taught = jax.nn.log_softmax(model.logits(teacher, images))
            losses += share * optax.losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(logits), taught
            )
        return jnp.mean(losses), statistics

    return loss


def _augmented(config: Config, key: jax.Array, images: jax.Array) -> jax.Array:
    if config.turn or config.zoom:
        images = random_turn(jax.random.fold_in(key, 2), images, config.turn, config.zoom)
    if config.shift:
        images = random_shift(key, images, config.shift)
    if config.flip:
        images = random_flip(jax.random.fold_in(key, 1), images)
    return images


def train(
    config: Config, model: Model, dataset: Dataset, workdir: Path, console: Console
) -> tuple[Snapshot, History]:
    """Runs all stages, from the last checkpoint in `workdir` if there is one, and returns where they end.

    Raises:
      FloatingPointError: if the loss is no longer finite.
    """
    steps = dataset.train.size // config.batch_size
    stages = stages_of(config, model.params, steps)
    ends = list(itertools.accumulate(stage.steps // steps for stage in stages))
    run_of = _runs(config, model, dataset)
    store = checkpoints.Checkpoints(workdir / "checkpoints")
    done, history = store.latest(), []
    stage = stages[bisect.bisect_right(ends, max(done - 1, 0))]
    snapshot = _blank(stage, model)
    if done:
        snapshot, history = store.restore(done, snapshot)
        console.print(f"going on after epoch {done}, found in {workdir}")
    run_epoch = run_of(stage, snapshot)
    with _progress(console) as progress:
        bar = progress.add_task("training", total=ends[-1], completed=done)
        for epoch in range(done, ends[-1]):
            started_at = time.monotonic()
            stage = stages[bisect.bisect_right(ends, epoch)]
            if epoch in ends:
                snapshot = _begin(stage, snapshot, model)
                run_epoch = run_of(stage, snapshot)
            key = jax.random.fold_in(jax.random.key(config.seed), epoch)
            trained = Trained(snapshot.params, snapshot.statistics, snapshot.opt_state)
            trained, loss = run_epoch(trained, epoch, key)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"training diverged in epoch {epoch + 1} (loss {float(loss)}); lower the learning rate"
                )
            snapshot = snapshot._replace(**trained._asdict())
            snapshot, measured = _measure(stage, snapshot, history, model, dataset)
            row = {"epoch": epoch + 1, "stage": stage.name, "loss": float(loss), **measured}
            history.append({**row, "seconds": round(time.monotonic() - started_at, 2)})
            store.save(epoch + 1, snapshot, history)
            console.print(_line(history[-1]), highlight=False)
            progress.advance(bar)
    store.close()
    return snapshot, history


def _runs(
    config: Config, model: Model, dataset: Dataset
) -> Callable[[Stage, Snapshot], Callable[[Trained, int, jax.Array], tuple[Trained, jax.Array]]]:
    """From a stage and where it starts to a function that trains for an epoch of this number."""
    part = dataset.train
    if isinstance(part, Part):

        def streamed(stage: Stage, start: Snapshot):
            run = streamed_epoch_function(model, dataset, config, stage.optimizer, start.baseline)
            return lambda trained, epoch, key: run(trained, part, config.seed * _SEEDS + epoch, key)

        return streamed
    images, labels = jnp.asarray(part.images), jnp.asarray(part.labels)

    def held(stage: Stage, start: Snapshot):
        run = epoch_function(model, dataset, config, stage.optimizer, start.baseline)
        return lambda trained, _, key: run(trained, images, labels, key)

    return held


def _blank(stage: Stage, model: Model) -> Snapshot:
    """A snapshot of the stage's structure, that starts from the model as it is."""
    params, statistics = model.params, model.statistics
    trained = Trained(params, statistics, stage.optimizer.init(params))
    if stage.name == DENSE:
        return Snapshot(*trained, None, None, jnp.int32(0))
    none = _none_yet(stage, params, statistics)
    return Snapshot(*trained, _kept(joined(params, statistics)), none, jnp.int32(0))


def _none_yet(stage: Stage, params: Any, statistics: Any) -> Any:
    """Of the structure of what the stage finds."""
    state = jax.eval_shape(stage.optimizer.init, params)
    shapes = jax.eval_shape(jpq_jax.finalize, params, state)
    no_codes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return _kept(joined(no_codes, statistics))


def _begin(stage: Stage, before: Snapshot, model: Model) -> Snapshot:
    """The stage's first snapshot, from where the one before it ended."""
    params, state = started(stage, before.params, before.opt_state)
    if before.best is None:
        dense = model._replace(params=params, statistics=before.statistics)
        return _blank(stage, dense)
    after = before._replace(params=_kept(params), opt_state=_kept(state))
    none = _none_yet(stage, params, before.statistics)
    is_alike = jax.tree.structure(none) == jax.tree.structure(before.best)
    if stage.name == FINE_TUNE and is_alike:  # under the same budget
        return after
    return after._replace(best=none, best_epoch=jnp.int32(0))


def _kept(tree: Any) -> Any:
    """A copy of its own: the next epoch is given the params' memory, stored leaves of codes included."""
    return jax.tree.map(jnp.copy, tree)


def _measure(
    stage: Stage, snapshot: Snapshot, history: History, model: Model, dataset: Dataset
) -> tuple[Snapshot, dict[str, Any]]:
    """Accuracy on the validation split, of the compressed params where there are any; keeps the best epoch."""
    if stage.name == DENSE:
        variables = joined(snapshot.params, snapshot.statistics)
        reached = accuracy(model, variables, dataset, dataset.validation)
        return snapshot, {"validation_accuracy": reached}

    def of_file(codes: Any) -> Any:
        return joined(codes, snapshot.statistics)

    codes = of_file(jpq_jax.finalize(snapshot.params, snapshot.opt_state, file=of_file))
    reached = accuracy(model, jpq_jax.dequantize(codes), dataset, dataset.validation)
    best = int(snapshot.best_epoch)
    # Of equals the later one, which has settled more.
    if not best or reached >= history[best - 1]["validation_accuracy"]:
        snapshot = snapshot._replace(best=_kept(codes), best_epoch=jnp.int32(len(history) + 1))
    count = count_kernels(codes)
    return snapshot, {
        "validation_accuracy": reached,
        "paper_ratio": 32 * count.weights / count.bits if count.bits else math.inf,
        "density": count.nonzeros / count.weights,
        "bits": [rate.bits for rate in jpq_jax.account(codes) if rate.compressed],
        "file_bytes_ideal": round(jpq_jax.rate_bits(codes, "file") / 8),
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _line(row: dict[str, Any]) -> str:
    parts = [f"epoch {row['epoch']:3d}  {row['stage']:8s}  loss {row['loss']:.4f}"]
    parts.append(f"validation {100 * row['validation_accuracy']:.2f} %")
    if "paper_ratio" in row:
        parts.append(f"{row['paper_ratio']:,.0f}x  bits {row['bits']}")
    return "  ".join([*parts, f"{row['seconds']:.1f} s"])
