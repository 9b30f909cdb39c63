"""The stages of a run, from its settings: a dense one, then those of the method of compression."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

import jpq_jax
from experiments.config import Config
from jpq_jax.plan import capacity, compressed_leaves
from jpq_jax.recipe import Stage, as_they_are, projected

DENSE = "dense"  # the name of the stage before compression
FINE_TUNE = "fine-tune"  # and of the last, where there is one
_REFITS = 20  # of the codebooks in an epoch of fine-tuning, as Yang et al. do
_PROJECTIONS = 4  # of ADMM toward a plan in an epoch
_YE_SHARES = (0.35, 0.2, 0.3, 0.15)  # of the epochs, for the stages of Ye et al.
_LEVELS = 4  # of its rho in a stage, each the cube root of 10 times the one before
_FIRMER = 10.0  # is its rho while clustering: what pruning has left is curved more


def budget_of(config: Config, params: Any) -> jpq_jax.Budget:
    """The config's budget for a model."""
    if config.ratio is not None:
        return jpq_jax.Budget(ratio=config.ratio)
    if config.nbytes is not None:
        return jpq_jax.Budget(nbytes=config.nbytes)
    if config.density is None or not config.widths:
        raise ValueError("the config has neither a ratio nor a density and bits")
    kernels = compressed_leaves(params, jpq_jax.plan_leaves(params))
    (width,) = config.widths
    bits = width * sum(math.ceil(config.density * kernel.size) for kernel in kernels)
    return jpq_jax.Budget(bits=bits)


def stages_of(
    config: Config,
    params: Any,
    steps: int,
    channel_bits: dict[str, Any] | None = None,
    besides: int | None = None,
) -> list[Stage]:
    """The stages of a run.

    steps: optimizer steps in an epoch. channel_bits: for the method channelwise. besides: see `jpq_jax.joint`.
    """
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
        compression = _compression(budget, params, steps, channel_bits, besides)
        stages.append(Stage("compress", config.epochs * steps, compression))
    if config.finetune_epochs:
        stages.append(_FINE_TUNING[config.method](config, steps))
    return stages


def _compression(
    config: Config,
    params: Any,
    steps: int,
    channel_bits: dict[str, Any] | None,
    besides: int | None,
) -> optax.GradientTransformationExtraArgs:
    schedule = _schedule(config.learning_rate, config.warmup_epochs * steps, config.epochs * steps)
    if config.method == "admm":
        compression = jpq_jax.admm(
            budget_of(config, params),
            rho=config.rho,
            every=steps,
            learning_rate=schedule,
            start_bits=next(iter(config.widths), 3),
        )
        return optax.chain(*_sgd(config, schedule), compression)
    if config.method == "channelwise":
        planner = jpq_jax.channelwise(channel_bits or {})
    else:
        planner = _planner(config, params, steps, besides)
    return jpq_jax.latent(
        _inner(config, schedule), planner, every=config.replan_every, pull=config.pull
    )


def _planner(config: Config, params: Any, steps: int, besides: int | None) -> jpq_jax.Planner:
    if config.method == "clustering":
        return jpq_jax.clustering(config.bits or 1, zero=config.zero)
    if config.method == "pruning":
        return _pruning(config, steps)
    budget = budget_of(config, params)
    ramp = _ramp(config, budget, params, steps)
    return jpq_jax.joint(budget, budget_schedule=ramp, besides=besides)


def _ye(config: Config, steps: int) -> list[Stage]:
    """Prune, retrain what is left, cluster it, retrain the clusters (Ye et al., 2018, arXiv 1811.01907).

    Clusters are retrained, and found by ADMM, at the rate of fine-tuning: a cluster that moves as a whole goes far.
    """
    prune, retrain, cluster, recluster = (epochs * steps for epochs in _ye_epochs(config.epochs))
    values = jpq_jax.clustering(config.bits or 1, zero=False)
    mask = jpq_jax.mask_updates()

    def sgd(peak: float, steps: int) -> optax.GradientTransformation:
        return optax.chain(*_sgd(config, _schedule(peak, 0, steps)))

    def toward(
        planner: jpq_jax.Planner, rho: float, peak: float, steps: int
    ) -> optax.GradientTransformationExtraArgs:
        rises = optax.exponential_decay(rho, steps // _LEVELS, 10 ** (1 / 3), staircase=True)
        pulled = jpq_jax.admm_to(planner, rho=rises, every=every)
        # What is clipped is the loss's gradient, and not the pull.
        loose = dataclasses.replace(config, clip=None)
        return optax.chain(*_clipping(config), pulled, *_sgd(loose, _schedule(peak, 0, steps)))

    every = max(steps // _PROJECTIONS, 1)
    fast, slow = config.learning_rate, config.finetune_learning_rate
    ramp = min(config.ramp_epochs, prune // steps)
    gradual = _pruning(dataclasses.replace(config, ramp_epochs=ramp), steps)
    still = jpq_jax.project_params(jpq_jax.pruning(config.density or 1.0), every=steps)
    if config.iterative:
        # Slower toward the end, which comes with the last projection.
        share = optax.polynomial_schedule(0.0, 1.0, 2, max(cluster - every, 1))
        freezing = jpq_jax.freeze_shares(values, share, every=every)
        clustered = optax.chain(sgd(fast, cluster), mask, freezing)
    else:
        clustered = optax.chain(toward(values, _FIRMER * config.rho, slow, cluster), mask)
    return [
        Stage("prune", prune, toward(gradual, config.rho, fast, prune)),
        Stage("retrain", retrain, optax.chain(sgd(fast, retrain), mask, still), inherit=projected),
        Stage("cluster", cluster, clustered),
        Stage(
            "retrain clusters",
            recluster,
            optax.chain(sgd(slow, recluster), jpq_jax.cluster_updates()),
            inherit=projected,
        ),
    ]


def _ye_epochs(epochs: int) -> list[int]:
    """Of the stages, together as many, but at least one each."""
    later = [max(round(share * epochs), 1) for share in _YE_SHARES[1:]]
    return [max(epochs - sum(later), 1), *later]


def _pruning(config: Config, steps: int) -> jpq_jax.Planner:
    keep = config.density or 1.0
    if not config.ramp_epochs:
        return jpq_jax.pruning(keep)
    fall = optax.polynomial_schedule(
        1 / max(keep, 1e-9), 1.0, config.ramp_power, config.ramp_epochs * steps
    )
    return jpq_jax.pruning(keep, keep_schedule=fall)


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
    if config.optimizer == "sgd":
        return optax.chain(*_sgd(config, schedule))
    return optax.chain(*_clipping(config), _weight_decay(config), optax.adam(schedule))


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


def _clipping(config: Config) -> list[optax.GradientTransformation]:
    return [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]


def _weight_decay(config: Config) -> optax.GradientTransformation:
    def kernels(params: Any) -> Any:
        compressed = [plan.compress for plan in jpq_jax.plan_leaves(params)]
        return jax.tree.unflatten(jax.tree.structure(params), compressed)

    return optax.add_decayed_weights(config.weight_decay, kernels)


def _sgd(config: Config, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        *_clipping(config),
        _weight_decay(config),
        optax.sgd(schedule, momentum=config.momentum),
    ]
