"""Training through the projection: the optimizer moves latent weights, the model sees what they are projected to."""

from __future__ import annotations

from collections.abc import Callable
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
    wider_dtype,
)
from jpq_jax.vocabulary import PyTree


class LatentState(NamedTuple):
    """Attributes:
    latent_count: [] int32, updates so far.
    latents: the weights that are trained, in float32 or more, in which small steps add up; like the params, `optax.MaskedNode` where
      a leaf is not compressed.
    latent_plan: the planner's, small arrays.
    latent_curvature: what an error of each compressed weight costs, as of the last plan; None for 1.
    inner_state: of the inner optimizer.
    """

    latent_count: jax.Array
    latents: PyTree
    latent_plan: Any
    latent_curvature: PyTree
    inner_state: Any


def latent(
    inner: optax.GradientTransformation,
    planner: Planner,
    *,
    every: int = 10,
    where: Where = None,
    curvature: Callable[[Any], PyTree] | None = None,
    pull: optax.ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Straight-through training: the gradient at Q = P(W) moves the latents W, and the params become the new P(W).

        W <- W + inner(grad loss(Q) + pull (W - Q));   Q <- P(W)

    Without a pull, weights that the loss wants neither kept nor pruned gather at the border, and cross it in turn.
    On pruned weights it is the term of Zhou et al., 2021 (arXiv 2102.04010); on kept ones the penalty of ADMM,
    without its dual variable.

    After every update the params take the values of the plan in force, and when it is made they are within its
    budget; `finalize` is always within the whole budget. The params of `init` are the first latents. The model need
    not know: its params hold Q, and the inner optimizer is shown W, so that weight decay acts on the latents.

    It is the outermost of what moves params: `latent(schedule_free(optimizer), planner)`, not the other way round, as the
    latents would be left behind; `finalize` notices. Lookahead, whose params are two copies, does not fit inside:
    there, `project_params` does. Within `shard_map` params and averaged gradients are the same on all devices, and so are
    the decisions; leaves that vary are an error, where JAX keeps track of them (`check_vma=True`).

    Args:
      inner: the optimizer; complete, with its learning rate.
      planner: makes the plan P, such as `joint(budget)`.
      every: updates between plans; by the plan in force, weights are assigned at every update.
      where: which leaves to compress, as in `plan_leaves`. `inner` updates the others as always.
      curvature: from the inner optimizer's state to what an error of each weight costs, like the params; looked at
        when a plan is made. With Adam: `lambda state: optax.tree.get(state, "nu")`.
      pull: of the latents toward their projection, as a part of the gradient: a number, or a schedule over updates.

    Returns:
      A transformation whose `update` needs params; it stands for the whole optimizer. Under
      `optax.inject_hyperparams`, name `planner`, `where`, `every` and `curvature` in its `static_args`.

    Raises:
      ValueError: an option out of range; in `init`, nothing to compress; in `update`, updates that do not fit the params, or
        leaves that vary over manual axes.
    """
    check_every("latent", every)
    check_strength("latent", "pull", pull)
    optimizer = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> LatentState:
        plan = compressing_plan(params, where, planner)
        leaves, curved = compressed_leaves(params, plan), curvature is not None
        latents = where_compressed(_wide_copy, params, plan)
        return LatentState(
            latent_count=jnp.zeros([], jnp.int32),
            latents=latents,
            latent_plan=planner.init(leaves, planned_leaves(plan), curved=curved),
            latent_curvature=where_compressed(float_zeros, params, plan) if curved else None,
            inner_state=optimizer.init(with_compressed(params, plan, jax.tree.leaves(latents))),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, LatentState]:
        check_update("latent", updates, params)
        leaves = compressing_plan(params, where, planner)
        check_whole("latent", leaves, params, updates)
        latents = with_compressed(params, leaves, jax.tree.leaves(state.latents))
        strength = value_at(pull, state.latent_count)
        gradients, weights, old = (
            compressed_leaves(tree, leaves) for tree in (updates, latents, params)
        )
        pulled = with_compressed(updates, leaves, _pulled(strength, gradients, weights, old))
        updates, inner_state = optimizer.update(pulled, state.inner_state, latents, **extra_args)
        moved = compressed_leaves(optax.apply_updates(latents, updates), leaves)
        weights, count = floats(moved), state.latent_count
        costs = None
        if curvature is not None:
            new = floats(compressed_leaves(curvature(inner_state), leaves))
            pairs = zip(new, jax.tree.leaves(state.latent_curvature), strict=True)
            costs = [jnp.where(count % every == 0, new, old) for new, old in pairs]
        plan = planned(planner, weights, state.latent_plan, count, every, costs)
        new_state = LatentState(
            latent_count=jnp.asarray(optax.safe_increment(count)),
            latents=refilled(state.latents, moved),
            latent_plan=plan,
            latent_curvature=None if costs is None else refilled(state.latent_curvature, costs),
            inner_state=inner_state,
        )
        assigned = differences(plan.assign(weights, costs), old, gradients)
        return with_compressed(updates, leaves, assigned), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _pulled(
    strength: Any, gradients: list[jax.Array], latents: list[jax.Array], params: list[jax.Array]
) -> list[jax.Array]:
    """The gradients with that of the pull, no narrower than the latents."""
    wide = [g.astype(wider_dtype(g, w)) for g, w in zip(gradients, latents, strict=True)]
    if isinstance(strength, int | float) and strength == 0:
        return wide
    return [
        g + (jnp.asarray(strength, jnp.float32) * (w - q)).astype(g.dtype)
        for g, w, q in zip(wide, floats(latents), floats(params), strict=True)
    ]


def _wide_copy(leaf: Any) -> jax.Array:
    """An array of its own, so that params and state can both be donated; zeros for a mere shape."""
    dtype = wider_dtype(leaf, jnp.zeros([], jnp.float32))
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, dtype)
    return jnp.array(leaf, dtype, copy=True)
