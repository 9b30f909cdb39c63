"""The train loop: a dense stage, then the stages of a method of compression, epoch by epoch."""

from __future__ import annotations

import bisect
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

import jpq_jax
from experiments import checkpoints, processes
from experiments.augmented import augmented
from experiments.beginning import Bits
from experiments.config import Config
from experiments.data import Dataset, Part, normalize
from experiments.data.imagenet import batches as streamed_batches
from experiments.evaluate import count_kernels
from experiments.model import Model, accuracy, joined
from experiments.norms import in_few_digits, seen_by_norms
from experiments.progress import progress_bar
from experiments.stages import DENSE, FINE_TUNE, stages_of
from jpq_jax.recipe import Stage, started
from jpq_jax.vocabulary import InfeasibleError

History = list[dict[str, Any]]

_SEEDS = 10_000  # more than there are epochs: each has a seed of its own


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
        seen = augmented(config, key, images)
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
    shared = NamedSharding(processes.images_mesh(), PartitionSpec("images"))
    step = jax.jit(step_function(model, dataset, config, optimizer, teacher), donate_argnums=0)
    shard = jax.process_index(), jax.process_count()

    def epoch(trained: Trained, part: Part, seed: int, key: jax.Array):
        trained, losses = processes.on_every_device(trained), []
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


def train(
    config: Config,
    model: Model,
    dataset: Dataset,
    workdir: Path,
    console: Console,
    baseline: Model | None = None,
    bits: Bits | None = None,
) -> tuple[Snapshot, History]:
    """Runs all stages, from the last checkpoint in `workdir` if there is one, and returns where they end.

    baseline: the dense model, where it is another than the one to start from. bits: of each channel, for the method channelwise.

    Raises:
      FloatingPointError: if the loss is no longer finite.
      InfeasibleError: for a budget in bytes that no file keeps to.
    """
    steps = dataset.train.size // config.batch_size
    stages = stages_of(config, model.params, steps, bits, _besides(config, model))
    ends = list(itertools.accumulate(stage.steps // steps for stage in stages))
    run_of, norms = _runs(config, model, dataset), seen_by_norms(model, dataset, config)
    store = checkpoints.Checkpoints(workdir / "checkpoints")
    done, history = store.latest(), []
    stage = stages[bisect.bisect_right(ends, max(done - 1, 0))]
    snapshot = _blank(stage, model, baseline, started=not done)
    if done:
        snapshot, history = store.restore(done, _shared(snapshot))
        console.print(f"going on after epoch {done}, found in {workdir}")
    run_epoch = run_of(stage, snapshot)
    with progress_bar(console) as progress:
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
            snapshot, measured = _measure(config, stage, snapshot, history, model, dataset, norms)
            row = {"epoch": epoch + 1, "stage": stage.name, "loss": float(loss), **measured}
            history.append({**row, "seconds": round(time.monotonic() - started_at, 2)})
            store.save(epoch + 1, _shared(snapshot), history)
            console.print(_line(history[-1]), highlight=False)
            progress.advance(bar)
    store.close()
    return snapshot, history


def _shared(snapshot: Snapshot) -> Snapshot:
    """As several processes can write and read it together: some of its arrays were made by each for itself."""
    return processes.on_every_device(snapshot) if jax.process_count() > 1 else snapshot


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


def _blank(
    stage: Stage, model: Model, baseline: Model | None = None, *, started: bool = True
) -> Snapshot:
    """A snapshot of the stage's structure, that starts from the model as it is, or, if it is not to, has zeros in its state."""
    params, statistics = model.params, model.statistics
    # Params of a later stage may be all that it can start from, such as clusters.
    init = stage.optimizer.init
    state = init(params) if started else _zeros(jax.eval_shape(init, params))
    trained = Trained(params, statistics, state)
    if stage.name == DENSE:
        return Snapshot(*trained, None, None, jnp.int32(0))
    none = _none_yet(stage, params, statistics)
    return Snapshot(*trained, _kept((baseline or model).variables), none, jnp.int32(0))


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _none_yet(stage: Stage, params: Any, statistics: Any) -> Any:
    """Of the structure of what the stage finds."""
    state = jax.eval_shape(stage.optimizer.init, params)
    shapes = jax.eval_shape(jpq_jax.finalize, params, state)
    return _kept(joined(_zeros(shapes), statistics))


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
    config: Config,
    stage: Stage,
    snapshot: Snapshot,
    history: History,
    model: Model,
    dataset: Dataset,
    norms: Callable[[Any, Any], Any],
) -> tuple[Snapshot, dict[str, Any]]:
    """Accuracy on the validation split, of the compressed params where there are any; keeps the best epoch, or the last."""
    if stage.name == DENSE:
        variables = joined(snapshot.params, snapshot.statistics)
        reached = accuracy(model, variables, dataset, dataset.validation)
        return snapshot, {"validation_accuracy": reached}

    codes = _finalized(config, snapshot, norms)
    reached = accuracy(model, jpq_jax.dequantize(codes), dataset, dataset.validation)
    best = int(snapshot.best_epoch)
    # Of equals the later one, which has settled more.
    if config.all_images or not best or reached >= history[best - 1]["validation_accuracy"]:
        snapshot = snapshot._replace(best=_kept(codes), best_epoch=jnp.int32(len(history) + 1))
    count = count_kernels(codes)
    return snapshot, {
        "validation_accuracy": reached,
        "paper_ratio": 32 * count.weights / count.bits if count.bits else math.inf,
        "density": count.nonzeros / count.weights,
        "bits": [rate.bits for rate in jpq_jax.account(codes) if rate.compressed],
        "file_bytes_ideal": round(jpq_jax.rate_bits(codes, "file") / 8),
    }


def _finalized(config: Config, snapshot: Snapshot, norms: Callable[[Any, Any], Any]) -> Any:
    """Codes of the params and statistics that go with them, as they are saved."""
    if config.nbytes is None:
        codes = jpq_jax.finalize(snapshot.params, snapshot.opt_state)
        return joined(codes, norms(jpq_jax.dequantize(codes), snapshot.statistics))
    # The statistics count in the file, so they come first: of the params, which are by the plan in force.
    statistics = in_few_digits(norms(snapshot.params, snapshot.statistics))

    def of_file(codes: Any) -> Any:
        return joined(codes, statistics)

    return of_file(jpq_jax.finalize(snapshot.params, snapshot.opt_state, file=of_file))


def _besides(config: Config, model: Model) -> int | None:
    """Bytes of a file without any weights, where a budget in bytes has statistics to pay for.

    Raises InfeasibleError for a budget that even these exceed.
    """
    if config.nbytes is None:
        return None
    nothing = jax.tree.map(jnp.zeros_like, model.params)
    least = jpq_jax.artifact.file_bytes(joined(nothing, in_few_digits(model.statistics)))
    if config.nbytes < least:
        raise InfeasibleError(
            f"got a budget of {config.nbytes} bytes, expected at least {least}: what a file of zeros takes"
        )
    return least if jax.tree.leaves(model.statistics) else None


def _line(row: dict[str, Any]) -> str:
    parts = [f"epoch {row['epoch']:3d}  {row['stage']:8s}  loss {row['loss']:.4f}"]
    parts.append(f"validation {100 * row['validation_accuracy']:.2f} %")
    if "paper_ratio" in row:
        parts.append(f"{row['paper_ratio']:,.0f}x  bits {row['bits']}")
    return "  ".join([*parts, f"{row['seconds']:.1f} s"])
