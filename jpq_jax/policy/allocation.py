"""Policies by rule: bits alike for all, by the weights' size, or by a Lagrangian over a table of errors."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jpq_jax.policy.decisions import (
    ACTIONS,
    Setting,
    cost_of,
    decided,
    in_multiples,
    least_policy,
    settled,
)
from jpq_jax.policy.evaluation import Table
from jpq_jax.vocabulary import MAX_BITS

_HALVINGS = 40
_SENSED_BITS = 3  # at which a layer's sensitivity is measured


def uniform_policy(setting: Setting) -> jax.Array:
    """All channels at the same bits, the most that the budget allows; where one bit is too much, the same share of each layer."""
    network = setting.network
    for bits in range(MAX_BITS, 0, -1):
        policy = jnp.full(len(network.slot_of), bits, jnp.int32)
        if float(cost_of(setting, policy)) <= setting.limit:
            return policy
    shares, levels = np.meshgrid(
        np.linspace(0.05, 1, 39), np.linspace(0, 1, MAX_BITS), indexing="ij"
    )
    each = np.stack([shares, levels, levels], axis=-1).reshape(-1, 1, ACTIONS)
    actions = jnp.asarray(np.tile(each, (1, len(network.layers), 1)), jnp.float32)
    found = jax.jit(jax.vmap(lambda one: decided(setting, one)))(actions)
    as_wanted = jnp.all(found.actions == actions, axis=(1, 2))
    spent = jax.vmap(lambda policy: cost_of(setting, policy))(found.policy)
    return found.policy[jnp.argmax(jnp.where(as_wanted, spent, -1))]


def magnitude_policy(setting: Setting, tables: tuple[Table, ...]) -> jax.Array:
    """The bits of a channel follow its weights' root mean square, one more for twice as much; least first, down to 0."""
    sizes = [float(layer.taps * layer.inputs.sum()) for layer in setting.network.layers]
    squares = jnp.concatenate([table.errors[0] / n for table, n in zip(tables, sizes, strict=True)])
    octaves = 0.5 * jnp.log2(jnp.maximum(squares, 1e-30))

    def at(level: jax.Array) -> jax.Array:
        bits = jnp.clip(jnp.round(octaves - level), 0, MAX_BITS).astype(jnp.int32)
        return _with_least(setting, bits)

    low, high = jnp.min(octaves) - MAX_BITS - 1, jnp.max(octaves) + 1
    return _lowest(setting, at, low, high)


def lagrangian_policy(
    setting: Setting, tables: tuple[Table, ...], sensitivity: jax.Array
) -> jax.Array:
    """Min over bits of  sum of s_l error(c, b) + price cost(c, b), with the price at which the budget is kept to.

    A slot lives if that is less for the channels that share it together than what they lose without it.

    Args:
      setting: the budget.
      tables: of errors.
      sensitivity: [layers], what a squared error costs in each; as from `sensitivity_of`.
    """
    errors = jnp.concatenate(
        [s * table.errors for s, table in zip(sensitivity, tables, strict=True)], axis=1
    )

    def at(price: jax.Array) -> jax.Array:
        return _with_least(setting, _priced(setting, errors, jnp.exp2(price)))

    return _lowest(setting, at, jnp.float32(-60), jnp.float32(60))


def sensitivity_of(
    setting: Setting,
    tables: tuple[Table, ...],
    accuracies: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """What a squared error costs in each layer: the accuracy that is lost with it alone at few bits, by its error there.

    Returns [layers], and the accuracies that were measured, [layers + 1].

    It takes as many evaluations as there are layers, and one. Where nothing is lost, a hundredth of an image in a hundred is;
    where the accuracy is not finite, all is.
    """
    layers = len(setting.network.layers)
    whole = jnp.full((layers + 1, len(setting.network.slot_of)), MAX_BITS, jnp.int32)
    mine = jnp.asarray(setting.network.layer_of)[None, :] == jnp.arange(layers + 1)[:, None]
    found = accuracies(jnp.where(mine, _SENSED_BITS, whole))
    lost = found[-1] - found[:-1]
    lost = jnp.maximum(jnp.where(jnp.isfinite(lost), lost, 1.0), 1e-4)
    error, energy = (
        jnp.stack([jnp.sum(table.errors[b]) for table in tables]) for b in (_SENSED_BITS, 0)
    )
    return lost / jnp.maximum(jnp.maximum(error, 1e-4 * energy), 1e-30), found


def _priced(setting: Setting, errors: jax.Array, price: jax.Array) -> jax.Array:
    """[channels]: each at its best, with costs as if all inputs were there: so a higher price never buys more."""
    network = setting.network
    slots = jnp.asarray(network.slot_of)
    each = errors + price * _cost_of_bits(setting)
    best = jnp.argmin(each[1:], axis=0).astype(jnp.int32) + 1
    gain = each[0] - jnp.min(each[1:], axis=0)
    of_slot = jnp.zeros(network.slots + 1, jnp.float32).at[slots].add(gain)
    lives = (of_slot > 0).at[-1].set(True)
    anyway = jnp.argmin(each, axis=0).astype(jnp.int32)
    return jnp.where(lives[slots], jnp.where(slots == network.slots, best, anyway), 0)


def _cost_of_bits(setting: Setting) -> jax.Array:
    """[9, channels]: of a channel at each bit-width."""
    layers = setting.network.layers
    each = np.array([layer.taps * layer.inputs.sum() for layer in layers], np.float32)
    if setting.cost in ("macs", "bit_operations"):
        each *= [layer.positions for layer in layers]
    return setting.lengths * each[setting.network.layer_of][None]


def _with_least(setting: Setting, policy: jax.Array) -> jax.Array:
    least = jnp.maximum(policy, least_policy(setting)[0])
    return in_multiples(setting, settled(setting, least))


def _lowest(
    setting: Setting, at: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> jax.Array:
    """The policy at about the lowest level that keeps to the budget."""

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = cost_of(setting, at(middle)) <= setting.limit
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    def find() -> jax.Array:
        found = at(lax.fori_loop(0, _HALVINGS, halve, (low, high))[1])
        fits = cost_of(setting, found) <= setting.limit
        return jnp.where(fits, found, least_policy(setting)[0])

    return jax.jit(find)()
