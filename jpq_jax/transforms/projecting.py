"""Keeping the params at values of a plan, within its budget when it is made: every update ends in a projection."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jpq_jax.plan import (
    Where,
    compressed_leaves,
    with_compressed,
)
from jpq_jax.projection.planner import Planner, planned
from jpq_jax.transforms.leaves import (
    check_every,
    check_update,
    check_whole,
    compressing_plan,
    differences,
    planned_leaves,
    where_compressed,
)
from jpq_jax.vocabulary import PyTree


class ProjectState(NamedTuple):
    """Attributes:
    project_count: [] int32, updates so far.
    project_leaves: [] bool for every leaf that is compressed; like the params, `optax.MaskedNode` elsewhere.
    project_plan: the planner's, small arrays.
    """

    project_count: jax.Array
    project_leaves: PyTree
    project_plan: Any


def project_params(
    planner: Planner, *, every: int = 1, where: Where = None
) -> optax.GradientTransformationExtraArgs:
    """Projected gradient descent: u <- P(p + u) - p. It stands last in a chain.

    A weight that is pruned, or at its level, stays there unless a single update carries it over the border to the
    next: small steps are undone. `latent` lets them add up. Borders stand still between plans: after the first plan of
    `pruning`, and while its schedule falls, a weight that shrinks below the smallest one kept is pruned at once, so that fewer
    than its share may be left; with `every=1` none is lost.

    Args:
      planner: makes the plan P, such as `joint(budget)`.
      every: updates between plans; by the plan in force, weights are assigned at every update.
      where: which leaves to compress, as in `plan_leaves`. The others' updates pass through.

    Returns:
      A transformation whose `update` needs params. Under `optax.inject_hyperparams`, name `planner`, `where` and
      `every` in its `static_args`.

    Raises:
      ValueError: an option out of range; in `init`, nothing to compress; in `update`, updates that do not fit the params.
    """
    check_every("project_params", every)

    def init(params: PyTree) -> ProjectState:
        leaves = compressing_plan(params, where, planner)
        return ProjectState(
            project_count=jnp.zeros([], jnp.int32),
            project_leaves=where_compressed(lambda _: jnp.ones([], bool), params, leaves),
            project_plan=planner.init(
                compressed_leaves(params, leaves), planned_leaves(leaves), curved=False
            ),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ProjectState]:
        del extra_args
        check_update("project_params", updates, params)
        leaves = compressing_plan(params, where, planner)
        check_whole("project_params", leaves, params, updates)
        old, steps = compressed_leaves(params, leaves), compressed_leaves(updates, leaves)
        count = state.project_count
        weights = [
            p.astype(jnp.float32) + u.astype(jnp.float32) for p, u in zip(old, steps, strict=True)
        ]
        plan = planned(planner, weights, state.project_plan, count, every)
        new_state = ProjectState(
            jnp.asarray(optax.safe_increment(count)), state.project_leaves, plan
        )
        projected = differences(plan.assign(weights, None), old, steps)
        return with_compressed(updates, leaves, projected), new_state

    return optax.GradientTransformationExtraArgs(init, update)
