"""Retraining with a frozen support: what is pruned stays pruned, whatever the optimizer does."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jpq_jax.plan import Where, compressed_leaves, plan_leaves, with_compressed
from jpq_jax.transforms.leaves import check_update, compressing_plan, where_compressed
from jpq_jax.vocabulary import PyTree


class MaskState(NamedTuple):
    """What `mask_updates` holds.

    Attributes:
      support: bool, which weights are trained; like the params, `optax.MaskedNode` where a leaf is not compressed.
    """

    support: PyTree


def mask_updates(*, where: Where = None) -> optax.GradientTransformationExtraArgs:
    """Sets the updates of pruned weights to zero; last in a chain, where neither momentum nor decay can follow.

    Pruned are the weights that are zero when `init` sees them. One that only passes through zero later, as happens
    in bfloat16, goes on. Ye et al., 2018 (arXiv 1811.01907) call this masked retraining.

    Args:
      where: which leaves have a support, as in `plan_leaves`. The others' updates pass through.

    Returns:
      A transformation whose state is a `MaskState`: a byte for each weight.

    Raises:
      ValueError: in `init`, nothing to compress; in `update`, without params or with updates that do not fit them.
    """

    def init(params: PyTree) -> MaskState:
        plan = compressing_plan(params, where)
        return MaskState(where_compressed(_support, params, plan))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        check_update("mask_updates", updates, params)
        plan = plan_leaves(params, where)
        pairs = zip(compressed_leaves(updates, plan), jax.tree.leaves(state.support), strict=True)
        masked = [jnp.where(kept, update, jnp.zeros_like(update)) for update, kept in pairs]
        return with_compressed(updates, plan, masked), state

    return optax.GradientTransformationExtraArgs(init, update)


def _support(leaf: Any) -> jax.Array:
    """Of mere shapes nothing is known: zeros, as in other states made of them."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, bool)
    return jnp.asarray(leaf != 0)
