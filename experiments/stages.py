"""The stages of a run, from its settings: a dense one, then those of the method of compression."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import jpq_jax
from experiments.config import Config
from jpq_jax.plan import capacity, compressed_leaves
from jpq_jax.projection.pruning import rounded_up
from jpq_jax.recipe import Stage, as_they_are, projected

DENSE = "dense"  # the name of the stage before compression
FINE_TUNE = "fine-tune"  # and of the last, where there is one
_REFITS = 20  # of the codebooks in an epoch of fine-tuning, as Yang et al. do
_PROJECTIONS = 4  # of ADMM toward a plan in an epoch
# Of the epochs, for the stages of Ye et al.: by ADMM, and retraining.
_PRUNING_SHARES, _CLUSTERING_SHARES = (0.35, 0.2), (0.3, 0.15)
_LEVELS = 4  # of its rho in a stage, each the cube root of 10 times the one before
_FIRMER = 10.0  # is its rho while clustering: what pruning has left is curved more


def budget_of(config: Config, params: Any) -> jpq_jax.Budget:
    """The config's budget for a model."""
    if config.ratio is not None:
        return jpq_jax.Budget(ratio=config.ratio)
    if config.nbytes is not None:
        return jpq_jax.Budget(nbytes=config.nbytes)
    if not config.densities or not config.widths:
        raise ValueError("the config has neither a ratio nor a density and bits")
    kernels = compressed_leaves(params, jpq_jax.plan_leaves(params))
    (density,), (width,) = config.densities, config.widths
    bits = width * sum(rounded_up(density, kernel.size) for kernel in kernels)
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
        return [*stages, *_ye(config, params, steps)]
    for density, bits in (*config.before, (config.density, config.bits)):
        budget = dataclasses.replace(config, density=density, bits=bits, before=())
        compression = _compression(budget, params, steps, channel_bits, besides)
        stages.append(Stage("compress", config.epochs * steps, compression))
    if config.finetune_epochs:
        stages.append(_FINE_TUNING[config.method](config, params, steps))
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
        return _pruning(config, params, steps)
    budget = budget_of(config, params)
    ramp = _ramp(config, budget, params, steps)
    return jpq_jax.joint(budget, budget_schedule=ramp, besides=besides)


def _ye(config: Config, params: Any, steps: int) -> list[Stage]:
    """Prune, retrain what is left, cluster it, retrain the clusters (Ye et al., 2018, arXiv 1811.01907); or one of both alone.

    Clusters are retrained, and found by ADMM, at the rate of fine-tuning: a cluster that moves as a whole goes far.
    """
    halves, shares = [], ()
    if config.density is not None:
        halves, shares = [_pruned_by_admm], _PRUNING_SHARES
    if config.bits is not None:
        halves, shares = [*halves, _clustered_by_admm], shares + _CLUSTERING_SHARES
    lengths = (epochs * steps for epochs in _epochs_by(shares, config.epochs))
    return [
        stage
        for half in halves
        for stage in half(config, params, steps, next(lengths), next(lengths))
    ]


def _pruned_by_admm(
    config: Config, params: Any, steps: int, length: int, retraining: int
) -> list[Stage]:
    fast = config.learning_rate
    ramp = min(config.ramp_epochs, length // steps)
    gradual = _pruning(dataclasses.replace(config, ramp_epochs=ramp), params, steps)
    still = jpq_jax.project_params(jpq_jax.pruning(_kept(config, params)), every=steps)
    masked = optax.chain(_cooling(config, fast, retraining), jpq_jax.mask_updates(), still)
    return [
        Stage("prune", length, _toward(config, gradual, config.rho, fast, length, steps)),
        Stage("retrain", retraining, masked, inherit=projected),
    ]


def _clustered_by_admm(
    config: Config, params: Any, steps: int, length: int, retraining: int
) -> list[Stage]:
    """Of what is not zero already, unless zero is to be one of the values."""
    del params
    fast, slow = config.learning_rate, config.finetune_learning_rate
    values = jpq_jax.clustering(config.bits or 1, zero=config.zero and config.density is None)
    if config.iterative:
        every = max(steps // _PROJECTIONS, 1)
        # Slower toward the end, which comes with the last projection.
        share = optax.polynomial_schedule(0.0, 1.0, 2, max(length - every, 1))
        freezing = jpq_jax.freeze_shares(values, share, every=every)
        clustered = optax.chain(_cooling(config, fast, length), jpq_jax.mask_updates(), freezing)
    else:
        pulled = _toward(config, values, _FIRMER * config.rho, slow, length, steps)
        clustered = optax.chain(pulled, jpq_jax.mask_updates())
    together = optax.chain(_cooling(config, slow, retraining), jpq_jax.cluster_updates())
    return [
        Stage("cluster", length, clustered),
        Stage("retrain clusters", retraining, together, inherit=projected),
    ]


def _cooling(config: Config, peak: float, length: int) -> optax.GradientTransformation:
    return optax.chain(*_sgd(config, _schedule(peak, 0, length)))


def _toward(
    config: Config, planner: jpq_jax.Planner, rho: float, peak: float, length: int, steps: int
) -> optax.GradientTransformationExtraArgs:
    """ADMM, for so many steps, of which an epoch has `steps`."""
    rises = optax.exponential_decay(rho, length // _LEVELS, 10 ** (1 / 3), staircase=True)
    pulled = jpq_jax.admm_to(planner, rho=rises, every=max(steps // _PROJECTIONS, 1))
    # What is clipped is the loss's gradient, and not the pull.
    loose = dataclasses.replace(config, clip=None)
    return optax.chain(*_clipping(config), pulled, _cooling(loose, peak, length))


def _epochs_by(shares: tuple[float, ...], epochs: int) -> list[int]:
    """Of the stages, together as many, but at least one each."""
    later = [max(round(share / sum(shares) * epochs), 1) for share in shares[1:]]
    return [max(epochs - sum(later), 1), *later]


def _kept(config: Config, params: Any) -> float | dict[str, float]:
    """As `pruning` takes it."""
    if isinstance(config.density, tuple):
        paths = [plan.path for plan in jpq_jax.plan_leaves(params) if plan.compress]
        return dict(zip(paths, config.density, strict=True))
    return config.density or 1.0


def _pruning(config: Config, params: Any, steps: int) -> jpq_jax.Planner:
    keep = _kept(config, params)
    if not config.ramp_epochs:
        return jpq_jax.pruning(keep)
    fall = optax.polynomial_schedule(
        1 / max(min(config.densities), 1e-9), 1.0, config.ramp_power, config.ramp_epochs * steps
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
    config: Config, params: Any, steps: int, bits: str, inherit: Callable[[Any, Any], Any]
) -> Stage:
    """With the support and the bit-widths held, straight through. bits: the field of the state that has them."""
    del params
    total, sgd = _retraining(config, steps)
    inner = optax.chain(*sgd, jpq_jax.mask_updates())
    held = jpq_jax.latent(inner, jpq_jax.clustering(1), every=max(steps // _REFITS, 1))
    return Stage(FINE_TUNE, total, held, inherit, {"clustered_bits": bits})


def _masked_retraining(config: Config, params: Any, steps: int) -> Stage:
    total, sgd = _retraining(config, steps)
    keep = jpq_jax.project_params(jpq_jax.pruning(_kept(config, params)), every=steps)
    masked = optax.chain(*sgd, jpq_jax.mask_updates(), keep)
    return Stage(FINE_TUNE, total, masked, projected)


def _cluster_retraining(config: Config, params: Any, steps: int) -> Stage:
    del params
    total, sgd = _retraining(config, steps)
    clusters = optax.chain(*sgd, jpq_jax.cluster_updates())
    return Stage(FINE_TUNE, total, clusters, projected)


_FINE_TUNING: dict[str, Callable[[Config, Any, int], Stage]] = {
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
