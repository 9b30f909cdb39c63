"""ADMM toward what any plan allows: pruning, clustering, or both (Ye et al., 2018, arXiv 1811.01907).

min_W loss(W)   subject to   W = Z,   Z feasible
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jpq_jax.plan import Where, compressed_leaves, with_compressed
from jpq_jax.projection.planner import Planner
from jpq_jax.sharding import replicated
from jpq_jax.sketch.histogram import power_of_two
from jpq_jax.transforms.leaves import (
    check_every,
    check_strength,
    check_update,
    check_whole,
    compressing_plan,
    differences,
    float_zeros,
    floats,
    planned_leaves,
    refilled,
    value_at,
    where_compressed,
)
from jpq_jax.transforms.penalty import gradient_penalty, proximal_step
from jpq_jax.vocabulary import PyTree


class Residuals(NamedTuple):
    """How far ADMM is from its end, and what that is measured by (Boyd et al., 2011, section 3.3). [] float32, but for the first.

    Attributes:
      projected_at: [] int32, updates before the projection that they are of; -1 before the first.
      primal: |W - Z|.
      dual: rho |Z - Z of the projection before|.
      primal_scale: the larger of |W| and |Z|.
      dual_scale: rho |U|.
    """

    projected_at: jax.Array
    primal: jax.Array
    dual: jax.Array
    primal_scale: jax.Array
    dual_scale: jax.Array


class SplitState(NamedTuple):
    """Attributes:
    split_count: [] int32, updates so far.
    split_target: Z, the feasible copy; like the params, `optax.MaskedNode` where a leaf is not compressed.
    split_dual: rho U, the dual variable, which does not change with rho; likewise.
    split_plan: the planner's, small arrays.
    split_residuals: as of the last projection; the dual one is infinite before the second.
    """

    split_count: jax.Array
    split_target: PyTree
    split_dual: PyTree
    split_plan: Any
    split_residuals: Residuals


class _Split(NamedTuple):
    """W, Z and rho U of the compressed leaves, as float32 lists, and the plan."""

    weights: list[jax.Array]
    target: list[jax.Array]
    dual: list[jax.Array]
    plan: Any
    residuals: Residuals


def admm_to(
    planner: Planner,
    *,
    rho: optax.ScalarOrSchedule,
    every: int,
    learning_rate: optax.ScalarOrSchedule | None = None,
    penalty: Literal["gradient", "proximal"] = "gradient",
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Pulls the params toward a copy that is feasible; the params themselves are not projected: `finalize` does that.

    Every `every` updates, and on the first, the plan is made for W + U, Z <- P(W + U) and U <- U + W - Z. With
    `penalty="gradient"` it stands first, before the optimizer proper, and adds rho (W - Z + U) to the gradients, as
    published; with `penalty="proximal"` it stands last, and W <- (W + update + lr rho (Z - U)) / (1 + lr rho).

    Args:
      planner: makes the plan P, such as `pruning(0.05)`, `clustering(2)` or `joint(budget)`.
      rho: strength of the pull, at least 0, or a schedule of it over updates. When it changes, rho U, the dual variable
        itself, is kept.
      every: updates between projections; published: some epochs.
      learning_rate: the optimizer's, or its schedule; for the proximal step only, which needs it.
      penalty: see above.
      where: which leaves to compress, as in `plan_leaves`. The others' updates pass through.

    Returns:
      A transformation whose `update` needs params. Its `SplitState` holds the residuals; `has_converged` judges them.
      Under `optax.inject_hyperparams`, name `planner`, `where` and `every` in its `static_args`.

    Raises:
      ValueError: an option out of range; in `init`, nothing to compress; in `update`, updates that do not fit the params.
    """
    check_every("admm_to", every)
    check_strength("admm_to", "rho", rho)
    if penalty not in ("proximal", "gradient"):
        raise ValueError(f"admm_to: got penalty={penalty!r}, expected 'proximal' or 'gradient'")
    if learning_rate is not None:
        check_strength("admm_to", "learning_rate", learning_rate)
    elif penalty == "proximal":
        raise ValueError("admm_to: the proximal step needs the optimizer's learning_rate")

    def init(params: PyTree) -> SplitState:
        leaves = compressing_plan(params, where, planner)
        far = [jnp.full([], jnp.inf, jnp.float32) for _ in range(2)]
        scales = [jnp.zeros([], jnp.float32) for _ in range(2)]
        return SplitState(
            split_count=jnp.zeros([], jnp.int32),
            split_target=where_compressed(jnp.zeros_like, params, leaves),
            split_dual=where_compressed(float_zeros, params, leaves),
            split_plan=planner.init(
                compressed_leaves(params, leaves), planned_leaves(leaves), curved=False
            ),
            split_residuals=Residuals(jnp.full([], -1, jnp.int32), *far, *scales),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, SplitState]:
        del extra_args
        check_update("admm_to", updates, params)
        leaves = compressing_plan(params, where, planner)
        check_whole("admm_to", leaves, params, updates)
        old, steps = compressed_leaves(params, leaves), compressed_leaves(updates, leaves)
        count = state.split_count
        strength = jnp.asarray(value_at(rho, count), jnp.float32)
        split = _Split(
            floats(old),
            floats(state.split_target),
            floats(state.split_dual),
            state.split_plan,
            state.split_residuals,
        )

        def project(split: _Split) -> _Split:
            return _projected(split, planner, count, strength)

        split = lax.cond(count % every == 0, project, lambda split: split, split)
        scaled = _scaled(split.dual, strength)
        if penalty == "gradient":
            new = gradient_penalty(steps, split.weights, split.target, scaled, strength)
        else:
            pull = strength * jnp.asarray(value_at(learning_rate, count), jnp.float32)
            moved = proximal_step(split.weights, floats(steps), split.target, scaled, pull)
            new = differences(moved, old, steps)
        new_state = SplitState(
            split_count=jnp.asarray(optax.safe_increment(count)),
            split_target=refilled(state.split_target, split.target),
            split_dual=refilled(state.split_dual, split.dual),
            split_plan=split.plan,
            split_residuals=split.residuals,
        )
        return with_compressed(updates, leaves, new), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def has_converged(
    state: SplitState, *, relative: float = 1e-2, absolute: float = 0.0, not_before: int = 0
) -> jax.Array:
    """Whether both residuals are small: [] bool.

        |W - Z| <= absolute + relative max(|W|, |Z|)   and   rho |Z - Z before| <= absolute + relative rho |U|

    Args:
      state: a `SplitState`, for instance by `optax.tree.get(opt_state, "SplitState")`.
      relative: to the norms of what the residuals are differences of.
      absolute: beside that.
      not_before: so many updates before the projection that the residuals are of; where the planner has a schedule, as many as that
        lasts: they are small on each of its plateaus.
    """
    residuals = state.split_residuals
    primal = absolute + relative * residuals.primal_scale
    dual = absolute + relative * residuals.dual_scale
    small = (residuals.primal <= primal) & (residuals.dual <= dual)
    return small & (residuals.projected_at >= not_before)


def _projected(split: _Split, planner: Planner, count: jax.Array, strength: jax.Array) -> _Split:
    scaled = _scaled(split.dual, strength)
    shifted = [w + u for w, u in zip(split.weights, scaled, strict=True)]
    plan = planner.replan(shifted, split.plan, count, None)
    target = plan.assign(shifted, None)
    # Without a pull there is no step of the dual variable either.
    dual = [
        jnp.where(strength > 0, strength * (x - z), y)
        for x, z, y in zip(shifted, target, split.dual, strict=True)
    ]
    moved = strength * _distance(target, split.target)
    residuals = Residuals(
        projected_at=count,
        primal=_distance(split.weights, target),
        dual=jnp.where(count == 0, jnp.inf, moved),
        primal_scale=jnp.maximum(_norm(split.weights), _norm(target)),
        dual_scale=_norm(dual),
    )
    return split._replace(target=target, dual=dual, plan=plan, residuals=residuals)


def _scaled(dual: Sequence[jax.Array], strength: jax.Array) -> list[jax.Array]:
    """U; zeros while there is no pull."""
    return [jnp.where(strength > 0, y / jnp.where(strength > 0, strength, 1), 0) for y in dual]


def _distance(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    return _norm([x - y for x, y in zip(a, b, strict=True)])


def _norm(leaves: Sequence[jax.Array]) -> jax.Array:
    """In units of the largest, in which squares neither overflow nor vanish. [] float32."""

    @replicated
    def largest(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(x), initial=0)

    @replicated
    def square(x: jax.Array, unit: jax.Array) -> jax.Array:
        return jnp.sum((x / unit) ** 2)

    if not leaves:
        return jnp.zeros([], jnp.float32)
    unit = power_of_two(jnp.max(jnp.stack([largest(x) for x in leaves])))
    return unit * jnp.sqrt(sum((square(x, unit) for x in leaves), jnp.float32(0)))
