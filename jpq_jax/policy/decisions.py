"""From a few numbers for each layer to a policy within a budget.

An action has three numbers from 0 to 1 for a layer: which share of its slots is kept, the most important ones, and the bits of the
most and of the least important of these; what lies between has bits between. Slots that the same layers write to are a group, of which the
first of these decides how many stay. An action that the budget does not allow, with the least for all layers after it, is scaled down until it does.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from jpq_jax.policy.network import Costs, Network, alive, coded_bits, costs
from jpq_jax.vocabulary import MAX_BITS, InfeasibleError

ACTIONS = 3  # keep, bits of the most and of the least important channel
Cost = Literal["bits", "macs", "bit_operations", "bytes"]
_SCALES = np.linspace(1, 0, 9, dtype=np.float32)
_EXACT = 2.0**24  # up to which costs, which are whole numbers, are exact in float32
_ROUNDING = 2.0**-18  # of greater ones
_LEAST = 0.1  # of the slots of a group are kept; where all may go, they do at a lower share


class Setting(NamedTuple):
    """What actions are decided by; arrays and constants.

    Attributes:
      network: the model's.
      cost: which of `Costs` is limited, or the bytes of the file.
      limit: of it.
      lengths: [9, channels of all layers] float32, what a weight counts for at each bit-width: its bits, those that it takes in a file,
        or for multiplications 1, and 0 if it is pruned.
      rank: [slots + 1] int32, of each slot by importance in its group, 0 the most important.
      group_of_slot: [slots + 1] int32, -1 for what cannot go.
      sizes: [groups] int32, slots of each.
      decider: [groups] int32, the layer that decides.
      importance: [channels of all layers] float32.
      place: [channels of all layers] int32, by importance within the layer, 0 the most important.
      multiple: how many slots stay of a group: so many, or twice, and so on, or all.
      empty: whether none may stay.
    """

    network: Network
    cost: Cost
    limit: float
    lengths: jax.Array
    rank: jax.Array
    group_of_slot: jax.Array
    sizes: jax.Array
    decider: jax.Array
    importance: jax.Array
    place: jax.Array
    multiple: int
    empty: bool


class Decided(NamedTuple):
    """Attributes:
    policy: [channels of all layers] int32.
    actions: [layers, 3] float32, as they were allowed.
    """

    policy: jax.Array
    actions: jax.Array


def setting_of(
    network: Network,
    importance: jax.Array,
    cost: Cost,
    limit: float,
    *,
    lengths: jax.Array | None = None,
    shared: bool = True,
    multiple: int = 1,
    empty: bool = False,
) -> Setting:
    """What there is to decide.

    Args:
      network: the model's.
      importance: [channels of all layers], as from `importance_of`.
      cost: what is limited; multiplications are as many at any number of bits, so that these are 8 there.
      limit: of it.
      lengths: as from `lengths_of`, where bytes are limited, which are estimated by them.
      shared: whether slots may go that several layers write to; those by groups, as depthwise ones, go with their inputs.
      multiple: of how many slots stay.
      empty: whether none may.

    Raises:
      InfeasibleError: if not even the least policy keeps to the limit.
    """
    each = np.asarray(importance, np.float64)
    values = np.zeros(network.slots + 1)
    values[network.slot_of] = each
    group_of_slot, deciders = _groups(network, shared=shared)
    rank = np.zeros(network.slots + 1, np.int32)
    for group in range(len(deciders)):
        mine = np.flatnonzero(group_of_slot == group)
        rank[mine[np.argsort(-values[mine], kind="stable")]] = np.arange(mine.size)
    place = []
    for i in range(len(network.layers)):
        order = np.argsort(-each[network.layer_of == i], kind="stable")
        place.append(np.argsort(order, kind="stable"))
    setting = Setting(
        network,
        cost,
        float(limit),
        _counted(network, cost) if lengths is None else lengths,
        jnp.asarray(rank),
        jnp.asarray(group_of_slot),
        jnp.asarray(
            np.bincount(group_of_slot[group_of_slot >= 0], minlength=len(deciders)), jnp.int32
        ),
        jnp.asarray(deciders, jnp.int32),
        jnp.asarray(each, jnp.float32),
        jnp.asarray(np.concatenate(place), jnp.int32),
        multiple,
        empty,
    )
    most = float(cost_of(setting, jnp.full(len(network.slot_of), MAX_BITS, jnp.int32)))
    if most > _EXACT:
        setting = setting._replace(limit=setting.limit * (1 - _ROUNDING))
    nothing = jnp.zeros((len(network.layers), ACTIONS))
    least = float(cost_of(setting, decided(setting, nothing).policy))
    if not least <= setting.limit:
        raise InfeasibleError(
            f"got a limit of {limit:,.0f} {cost}, expected at least {least:,.0f}: the least policy's"
        )
    return setting


def _groups(network: Network, *, shared: bool) -> tuple[np.ndarray, list[int]]:
    """[slots + 1], the group of each slot that may go, or -1; and which layer decides for each group, the first that writes to it."""
    writes = np.zeros((len(network.layers), network.slots), bool)
    for i, layer in enumerate(network.layers):
        writes[i, layer.slots[layer.slots < network.slots]] = True
    is_own = np.array([layer.kind != "grouped" for layer in network.layers])
    writers = writes[is_own].sum(axis=0) + _written_by_others(network)
    may_go = writes.any(axis=0) & (shared | (writers == 1))
    group_of_slot = np.full(network.slots + 1, -1, np.int32)
    found: dict[bytes, int] = {}
    deciders = []
    for slot in np.flatnonzero(may_go):
        column = writes[:, slot]
        group = found.setdefault(column.tobytes(), len(found))
        if group == len(deciders):
            deciders.append(int(np.argmax(column)))
        group_of_slot[slot] = group
    return group_of_slot, deciders


def _written_by_others(network: Network) -> np.ndarray:
    """[slots] bool: whether a leaf without a policy, such as an embedding, writes to it."""
    planned = {layer.leaf for layer in network.layers}
    found = np.zeros(network.slots + 1, bool)
    for leaf, axes in enumerate(network.of_axes):
        if leaf not in planned and len(axes) > 1:
            found[axes[-1]] = True
    return found[:-1]


def _counted(network: Network, cost: Cost) -> jax.Array:
    widths = np.arange(MAX_BITS + 1)[:, None]
    each = np.minimum(widths, 1) if cost == "macs" else widths
    return jnp.asarray(np.broadcast_to(each, (MAX_BITS + 1, len(network.slot_of))), jnp.float32)


def cost_of(setting: Setting, policy: jax.Array) -> jax.Array:
    """[] float32."""
    if setting.cost == "bytes":
        return coded_bits(setting.network, setting.lengths, policy) / 8
    found: Costs = costs(setting.network, policy)
    return getattr(found, setting.cost)


def decided(setting: Setting, actions: jax.Array) -> Decided:
    """actions: [layers, 3] float32 in 0..1."""

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]):
        policy, kept, action = allowed(setting, *carry, *at)
        return (policy, kept), action

    layers = jnp.arange(len(setting.network.layers))
    (policy, _), actions = lax.scan(step, least_policy(setting), (layers, actions))
    return Decided(policy, actions)


def least_policy(setting: Setting) -> tuple[jax.Array, jax.Array]:
    """One bit for the channels of the slots that are always kept; and these, [slots + 1] bool."""
    kept = setting.rank < _number(setting, jnp.float32(0))
    kept |= setting.group_of_slot < 0
    return settled(setting, jnp.where(kept[setting.network.slot_of], 1, 0)), kept


def settled(setting: Setting, policy: jax.Array) -> jax.Array:
    """With all the bits there are, where they cost nothing."""
    return jnp.where(policy > 0, MAX_BITS, 0) if setting.cost == "macs" else policy


def in_multiples(setting: Setting, policy: jax.Array) -> jax.Array:
    """With one bit for the most important of the slots that have none, until their number is as it may be."""
    if setting.multiple == 1:
        return policy
    slots, groups = setting.network.slot_of, len(setting.sizes)
    lives = alive(setting.network, policy)
    group = jnp.where(setting.group_of_slot < 0, groups, setting.group_of_slot)
    living = jnp.zeros(groups + 1, jnp.int32).at[group].add(jnp.where(lives, 1, 0))[:groups]
    missing = whole_number(setting, living) - living
    # In order of importance within each group, the dead first.
    order = jnp.lexsort((setting.rank, lives, group))
    place = jnp.zeros_like(group).at[order].set(jnp.arange(group.size, dtype=jnp.int32))
    first = jnp.full(groups + 1, group.size, jnp.int32).at[group].min(place)
    revived = ~lives & (place - first[group] < jnp.append(missing, 0)[group])
    return settled(setting, jnp.where(revived[slots], jnp.maximum(policy, 1), policy))


def whole_number(setting: Setting, number: jax.Array) -> jax.Array:
    """Of slots that stay of each group, rounded up to a multiple, but to no more than there are. number: [groups] int32."""
    return jnp.minimum(-(-number // setting.multiple) * setting.multiple, setting.sizes)


def together(setting: Setting) -> NDArray[np.int64]:
    """For each layer the one that decides for its first slots, or itself."""
    deciders = np.asarray(setting.decider)
    group_of_slot = np.asarray(setting.group_of_slot)
    first = [group_of_slot[layer.slots[0]] for layer in setting.network.layers]
    return np.array([deciders[g] if g >= 0 else i for i, g in enumerate(first)], np.int64)


def of_slots(setting: Setting, number: jax.Array) -> jax.Array:
    """[slots + 1], what the group of each has; 0 for what cannot go. number: [groups]."""
    padded = jnp.append(number, jnp.zeros((), number.dtype))
    return padded[setting.group_of_slot]  # -1 is the last


def _number(setting: Setting, keep: jax.Array) -> jax.Array:
    """[slots + 1], how many slots the group of each keeps. keep: [] share."""
    share = jnp.clip(keep, _LEAST, 1.0)
    wanted = jnp.ceil(share * setting.sizes.astype(jnp.float32) - 1e-4).astype(jnp.int32)
    if setting.empty:
        wanted = jnp.where(keep < _LEAST, 0, wanted)
    return of_slots(setting, whole_number(setting, wanted))


def allowed(
    setting: Setting, policy: jax.Array, kept: jax.Array, layer: jax.Array, action: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The policy and the slots with this layer decided, and the action as it was allowed."""
    network = setting.network
    mine = jnp.asarray(network.layer_of) == layer
    of_group = of_slots(setting, setting.decider == layer)

    def tried(scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        keep, high, low = scale * action
        slots = jnp.where(of_group, setting.rank < _number(setting, keep), kept)
        left = jnp.sum(jnp.where(mine & slots[network.slot_of], 1, 0))
        along = setting.place.astype(jnp.float32) / jnp.maximum(left - 1, 1).astype(jnp.float32)
        bits = 1 + jnp.round((MAX_BITS - 1) * (high + (low - high) * jnp.minimum(along, 1)))
        new = jnp.where(mine, bits.astype(jnp.int32), jnp.maximum(policy, 1))
        new = settled(setting, jnp.where(slots[network.slot_of], new, 0))
        return new, slots, cost_of(setting, new)

    policies, slots, each = jax.vmap(tried)(jnp.asarray(_SCALES))
    # At 0 it is the least policy, which the limit allows, though not always by another program's rounding.
    first = jnp.argmax((each <= setting.limit).at[-1].set(True))
    return policies[first], slots[first], jnp.asarray(_SCALES)[first] * action
