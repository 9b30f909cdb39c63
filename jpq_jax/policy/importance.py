"""How much a channel matters: one criterion for all that decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax.policy.network import Network
from jpq_jax.sharding import replicated
from jpq_jax.vocabulary import PyTree, leaves_with_paths

Criterion = Literal["magnitude", "taylor", "norm"]


def importance_of(
    network: Network,
    params: PyTree,
    criterion: Criterion = "magnitude",
    gradients: PyTree | None = None,
) -> jax.Array:
    """Of each channel of all layers, over all that shares its slot: [channels of all layers] float32.

    Args:
      network: the model's.
      params: dense.
      criterion: "magnitude", the root of the mean square of the kernels' weights; "taylor", the change of the loss to first
        order, |sum w g| (Molchanov et al., 2017, arXiv 1611.06440); "norm", the size of a norm's scale (Liu et al.,
        2017, arXiv 1708.06519), for slots without a norm the largest there is, so that they stay.
      gradients: of the loss, like the params; for "taylor".

    Raises:
      ValueError: no such criterion, or "taylor" without gradients.
    """
    if criterion not in ("magnitude", "taylor", "norm"):
        raise ValueError(f"importance: got {criterion!r}, expected magnitude, taylor or norm")
    if criterion == "taylor" and gradients is None:
        raise ValueError("importance: taylor needs the gradients of the loss")
    leaves = [(path, jnp.asarray(leaf, jnp.float32)) for path, leaf in leaves_with_paths(params)]
    if criterion == "norm":
        return _by_norms(network, leaves)
    if gradients is not None and jax.tree.structure(gradients) != jax.tree.structure(params):
        raise ValueError(
            "importance: got gradients of another structure than the params, expected the same"
        )
    total, number = (jnp.zeros(network.slots + 1, jnp.float32) for _ in range(2))
    of_gradients, own = jax.tree.leaves(gradients), []
    for layer in network.layers:
        w = leaves[layer.leaf][1]
        axes = tuple(range(w.ndim - 1))
        value = (
            w**2 if criterion == "magnitude" else w * of_gradients[layer.leaf].astype(jnp.float32)
        )
        sums, weights = _sums(axes)(value), w.size / layer.channels
        total, number = total.at[layer.slots].add(sums), number.at[layer.slots].add(weights)
        own.append(sums / weights if criterion == "magnitude" else sums)
    slots = jnp.asarray(network.slot_of)
    of_slots = total / jnp.maximum(number, 1) if criterion == "magnitude" else total
    # What cannot go has no slot, but channels of more and of less importance, too.
    each = jnp.abs(jnp.where(slots < network.slots, of_slots[slots], jnp.concatenate(own)))
    return jnp.sqrt(each) if criterion == "magnitude" else each


def _sums(axes: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    return replicated(lambda value: jnp.sum(value, axis=axes))


def _by_norms(network: Network, leaves: list[tuple[str, jax.Array]]) -> jax.Array:
    scale = jnp.zeros(network.slots + 1, jnp.float32)
    has = np.zeros(network.slots + 1, bool)
    for (path, leaf), axes in zip(leaves, network.of_axes, strict=True):
        if path.rsplit("/", 1)[-1] == "scale" and len(axes) == 1:
            scale = scale.at[axes[0]].max(jnp.abs(leaf))
            has[axes[0]] = True
    return jnp.where(has, scale, jnp.max(scale))[network.slot_of]
