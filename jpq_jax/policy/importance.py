"""How much a channel matters: one criterion for all that decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax.plan import check_finite
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
      ValueError: no such criterion; "taylor" without gradients, or with other ones than the params', or not finite; "norm"
        without any norm's scale along a layer's channels.
    """
    if criterion not in ("magnitude", "taylor", "norm"):
        raise ValueError(f"importance: got {criterion!r}, expected magnitude, taylor or norm")
    if criterion == "taylor" and gradients is None:
        raise ValueError("importance: taylor needs the gradients of the loss")
    leaves = leaves_with_paths(params)
    if criterion == "norm":
        return _by_norms(network, leaves)
    of_gradients = _checked(network, params, gradients)
    total, number = (jnp.zeros(network.slots + 1, jnp.float32) for _ in range(2))
    own = []
    for layer in network.layers:
        w = jnp.asarray(leaves[layer.leaf][1], jnp.float32)
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


def _checked(network: Network, params: PyTree, gradients: PyTree | None) -> list[jax.Array]:
    """The leaves of the gradients, if there are any."""
    if gradients is None:
        return []
    if jax.tree.structure(gradients) != jax.tree.structure(params):
        raise ValueError(
            "importance: got gradients of another structure than the params, expected the same"
        )
    leaves, own = jax.tree.leaves(gradients), jax.tree.leaves(params)
    for layer in network.layers:
        got, expected = leaves[layer.leaf], own[layer.leaf]
        if got.shape != expected.shape:
            raise ValueError(
                f"importance: leaf {layer.path!r}: got a gradient of shape {got.shape}, expected {expected.shape}"
            )
        check_finite(layer.path, got)
    return leaves


def _sums(axes: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    return replicated(lambda value: jnp.sum(value, axis=axes))


def _by_norms(network: Network, leaves: list[tuple[str, Any]]) -> jax.Array:
    scale = jnp.zeros(network.slots + 1, jnp.float32)
    has = np.zeros(network.slots + 1, bool)
    for (path, leaf), axes in zip(leaves, network.of_axes, strict=True):
        if path.rsplit("/", 1)[-1] == "scale" and len(axes) == 1:
            scale = scale.at[axes[0]].max(jnp.abs(jnp.asarray(leaf, jnp.float32)))
            has[axes[0]] = True
    if not has[:-1].any():
        raise ValueError(
            "importance: got criterion='norm', but no leaf called scale lies along a layer's channels; expected some"
        )
    return jnp.where(has, scale, jnp.max(scale))[network.slot_of]
