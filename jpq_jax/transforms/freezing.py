"""Iterative quantization and retraining: part of the weights take their final values, the rest make up for it, and so on."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jpq_jax.allocation.knapsack import kept_by, magnitude_of
from jpq_jax.allocation.largest import largest_of_each
from jpq_jax.plan import Where, compressed_leaves, with_compressed
from jpq_jax.projection.planner import Planner
from jpq_jax.transforms.leaves import (
    check_every,
    check_update,
    check_whole,
    compressing_plan,
    differences,
    floats,
    planned_leaves,
    where_compressed,
)
from jpq_jax.vocabulary import PyTree

_ROUNDING = 2.0**-22  # of a product in float32: 0.09 of 300 weights are 27


class FreezeState(NamedTuple):
    """Attributes:
    freeze_count: [] int32, updates so far.
    frozen: bool, which weights have their final values; like the params, `optax.MaskedNode` where a leaf is not compressed.
    freeze_plan: the planner's, made at the first update.
    """

    freeze_count: jax.Array
    frozen: PyTree
    freeze_plan: Any


def freeze_shares(
    planner: Planner, share: optax.ScalarOrSchedule, *, every: int, where: Where = None
) -> optax.GradientTransformationExtraArgs:
    """Puts a growing share of each leaf's weights, the largest first, to their values, and keeps them there.

    It stands last in a chain. The values are fitted once, at the first update. Ye et al., 2018 (arXiv 1811.01907) call this
    iterative weight quantization and retraining, after Zhou et al., 2017 (arXiv 1702.03044). To go leaf by leaf instead,
    use one such transformation after the other, with `where`.

    Args:
      planner: makes the plan, such as `clustering(3)`.
      share: of the weights of each leaf that are not zero, rounded up, a schedule over updates; at 1 all are frozen, zeros too. What is
        frozen once stays so when it falls. So that what is pruned stays so before that, `mask_updates` goes before it.
      every: updates between one freezing and the next.
      where: which leaves to compress, as in `plan_leaves`. The others' updates pass through.

    Returns:
      A transformation whose `update` needs params. Under `optax.inject_hyperparams`, name `planner`, `where` and `every` in
      its `static_args`.

    Raises:
      ValueError: an option out of range; in `init`, nothing to compress; in `update`, updates that do not fit the params.
    """
    check_every("freeze_shares", every)

    def init(params: PyTree) -> FreezeState:
        leaves = compressing_plan(params, where, planner)
        return FreezeState(
            freeze_count=jnp.zeros([], jnp.int32),
            frozen=where_compressed(lambda leaf: jnp.zeros_like(leaf, dtype=bool), params, leaves),
            freeze_plan=planner.init(
                compressed_leaves(params, leaves), planned_leaves(leaves), curved=False
            ),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, FreezeState]:
        del extra_args
        check_update("freeze_shares", updates, params)
        leaves = compressing_plan(params, where, planner)
        check_whole("freeze_shares", leaves, params, updates)
        old, steps = compressed_leaves(params, leaves), compressed_leaves(updates, leaves)
        weights, count = floats(old), state.freeze_count
        plan = lax.cond(
            count == 0,
            lambda: planner.replan(weights, state.freeze_plan, count, None),
            lambda: state.freeze_plan,
        )
        frozen = jax.tree.leaves(state.frozen)
        now = jnp.asarray(share(count) if callable(share) else share, jnp.float32)
        frozen = lax.cond(count % every == 0, lambda: _more(frozen, weights, now), lambda: frozen)
        snapped = differences(plan.assign(weights, None), old, steps)
        new = [
            jnp.where(still, to_value, step.astype(to_value.dtype))
            for still, to_value, step in zip(frozen, snapped, steps, strict=True)
        ]
        new_state = FreezeState(
            freeze_count=jnp.asarray(optax.safe_increment(count)),
            frozen=jax.tree.unflatten(jax.tree.structure(state.frozen), frozen),
            freeze_plan=plan,
        )
        return with_compressed(updates, leaves, new), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _more(frozen: list[jax.Array], weights: list[jax.Array], share: jax.Array) -> list[jax.Array]:
    """The same and the largest of the others, up to this share of each leaf."""
    pairs = list(zip(frozen, weights, strict=True))
    kept = jnp.stack([jnp.sum(mask | (w != 0), dtype=jnp.uint32) for mask, w in pairs])
    wanted = jnp.clip(share, 0, 1) * kept.astype(jnp.float32)
    most = jnp.ceil(wanted * (1 - _ROUNDING)).astype(jnp.uint32)
    already = jnp.stack([jnp.sum(mask, dtype=jnp.uint32) for mask in frozen])
    magnitudes = [jnp.where(mask, 0, magnitude_of(w)) for mask, w in pairs]
    cut = largest_of_each(magnitudes, most - jnp.minimum(already, most))
    return [
        mask | chosen | (share >= 1)
        for mask, chosen in zip(frozen, kept_by(cut, magnitudes), strict=True)
    ]
