"""Retraining with a frozen support: what is pruned stays pruned, whatever the optimizer does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jpq_jax.plan import Where, compressed_leaves, plan_leaves, with_compressed
from jpq_jax.transforms.leaves import check_update, compressing_plan
from jpq_jax.vocabulary import PyTree


def mask_updates(*, where: Where = None) -> optax.GradientTransformationExtraArgs:
    """Sets the updates of weights that are zero to zero; last in a chain, where neither momentum nor decay can follow.

    Stateless: the support is where the params are not zero. Ye et al., 2018 (arXiv 1811.01907) call this masked
    retraining.

    Args:
      where: which leaves have a support, as in `plan_leaves`. The others' updates pass through.

    Raises:
      ValueError: in `init`, nothing to compress; in `update`, without params or with updates that do not fit them.
    """

    def init(params: PyTree) -> optax.EmptyState:
        compressing_plan(params, where)  # raises if there is nothing to mask
        return optax.EmptyState()

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        check_update("mask_updates", updates, params)
        plan = plan_leaves(params, where)
        pairs = zip(compressed_leaves(updates, plan), compressed_leaves(params, plan), strict=True)
        masked = [_where_nonzero(update, weight) for update, weight in pairs]
        return with_compressed(updates, plan, masked), state

    return optax.GradientTransformationExtraArgs(init, update)


def _where_nonzero(update: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.where(weight == 0, jnp.zeros_like(update), update)
