"""How accurate a model is under a policy, for many policies in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.policy.network import Network, alive, by_path, without_dead
from jpq_jax.projection.channelwise import fitted, quantized
from jpq_jax.vocabulary import MAX_BITS, PyTree


class Table(NamedTuple):
    """Of one layer, for each bit-width from 0 on.

    Attributes:
      steps: [9, 1, ..., channels] float32.
      errors: [9, channels] float32, squared, summed over the channel's weights.
    """

    steps: jax.Array
    errors: jax.Array


def tables_of(network: Network, params: PyTree) -> tuple[Table, ...]:
    """For each layer."""
    leaves = jax.tree.leaves(params)
    return tuple(_table_of(leaves[layer.leaf].astype(jnp.float32)) for layer in network.layers)


@jax.jit
def _table_of(w: jax.Array) -> Table:
    def of_width(width: jax.Array) -> Table:
        return Table(*fitted(w, jnp.full(w.shape[-1], width, jnp.int32)))

    return lax.map(of_width, jnp.arange(MAX_BITS + 1, dtype=jnp.int32))


def step_of(table: Table, bits: jax.Array) -> jax.Array:
    """[1, ..., channels]. bits: [channels] int32."""
    places = bits.reshape((1,) * (table.steps.ndim - 1) + (-1,))
    return jnp.take_along_axis(table.steps, places, axis=0)[0]


def under_policy(
    network: Network, params: PyTree, tables: tuple[Table, ...], policy: jax.Array
) -> PyTree:
    """The params with each channel on its grid, and zeros for all that belongs to dead slots. policy: [channels of all layers]."""
    leaves, structure = jax.tree.flatten(params)
    for layer, table, bits in zip(
        network.layers, tables, by_path(network, policy).values(), strict=True
    ):
        w = leaves[layer.leaf]
        on_grid = quantized(w.astype(jnp.float32), bits, step_of(table, bits))
        leaves[layer.leaf] = on_grid.astype(w.dtype)
    return without_dead(network, jax.tree.unflatten(structure, leaves), alive(network, policy))


def accuracies(
    network: Network,
    params: PyTree,
    tables: tuple[Table, ...],
    right: Callable[[PyTree], jax.Array],
    at_once: int = 1,
) -> Callable[[jax.Array], jax.Array]:
    """A function from policies, [policies, channels of all layers] int32, to accuracies, [policies] float32.

    right: from params to the share of examples that the model gets right; pure. at_once: how many are measured side by side.
    """

    @jax.jit
    def of_policies(policies: jax.Array) -> jax.Array:
        def one(policy: jax.Array) -> Any:
            return jnp.float32(right(under_policy(network, params, tables, policy)))

        return lax.map(one, policies, batch_size=at_once if at_once > 1 else None)

    return of_policies
