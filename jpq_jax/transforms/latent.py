"""Training through the projection: the optimizer moves latent weights, the model sees what they are projected to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jpq_jax.plan import Where, check_compresses, compressed_leaves, plan_leaves, with_compressed
from jpq_jax.projection.planner import Planner, planned
from jpq_jax.transforms.leaves import (
    check_update,
    differences,
    floats,
    refilled,
    where_compressed,
)
from jpq_jax.vocabulary import PyTree


class LatentState(NamedTuple):
    """Attributes:
    latent_count: [] int32, updates so far.
    latents: the weights that are trained; like the params, `optax.MaskedNode` where a leaf is not compressed.
    latent_plan: the planner's, small arrays.
    inner_state: of the inner optimizer.
    """

    latent_count: jax.Array
    latents: PyTree
    latent_plan: Any
    inner_state: Any


def latent(
    inner: optax.GradientTransformation,
    planner: Planner,
    *,
    every: int = 10,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    """Straight-through training: the gradient at Q = P(W) moves the latents W, and the params become the new P(W).

        W <- W + inner(grad loss(Q));   Q <- P(W)

    The params are feasible after every update; those of `init` are the first latents. The model need not know:
    its params hold Q, and the inner optimizer is shown W, so that weight decay acts on the latents.

    Args:
      inner: the optimizer; complete, with its learning rate.
      planner: makes the plan P, such as `joint(budget)`.
      every: updates between plans; by the plan in force, weights are assigned at every update.
      where: which leaves to compress, as in `plan_leaves`. `inner` updates the others as always.

    Returns:
      A transformation whose `update` needs params; it stands for the whole optimizer. Under
      `optax.inject_hyperparams`, name `planner`, `where` and `every` in its `static_args`.

    Raises:
      ValueError: an option out of range; in `init`, nothing to compress; in `update`, updates that do not fit the params.
    """
    if isinstance(every, int) and every < 1:
        raise ValueError(f"latent: got every={every}, expected at least 1")
    optimizer = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> LatentState:
        plan = plan_leaves(params, where)
        if plan:  # an empty tree is let through: optax.tree.map_params asks with one
            check_compresses(plan)
        return LatentState(
            latent_count=jnp.zeros([], jnp.int32),
            latents=where_compressed(_copy, params, plan),
            latent_plan=planner.init(compressed_leaves(params, plan)),
            inner_state=optimizer.init(params),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, LatentState]:
        check_update("latent", updates, params)
        leaves = plan_leaves(params, where)
        latents = with_compressed(params, leaves, jax.tree.leaves(state.latents))
        updates, inner_state = optimizer.update(updates, state.inner_state, latents, **extra_args)
        moved = compressed_leaves(optax.apply_updates(latents, updates), leaves)
        weights = floats(moved)
        plan = planned(planner, weights, state.latent_plan, state.latent_count, every)
        old, steps = compressed_leaves(params, leaves), compressed_leaves(updates, leaves)
        new_state = LatentState(
            latent_count=jnp.asarray(optax.safe_increment(state.latent_count)),
            latents=refilled(state.latents, moved),
            latent_plan=plan,
            inner_state=inner_state,
        )
        assigned = differences(plan.assign(weights), old, steps)
        return with_compressed(updates, leaves, assigned), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _copy(leaf: Any) -> jax.Array:
    """An array of its own, so that params and state can both be donated; zeros for a mere shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.array(leaf, copy=True)
