"""Policies by trial, all in equal numbers of evaluations: at random, by evolution, or by an agent (`agent.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.policy.decisions import (
    ACTIONS,
    Setting,
    cost_of,
    decided,
    in_multiples,
    least_policy,
    of_slots,
    settled,
    together,
    whole_number,
)
from jpq_jax.vocabulary import MAX_BITS

_PARENTS = 10  # of a generation
_DRAWN = 16  # children for each that is tried
_FEW = 0.002  # of the channels have a bit more or less, at least
_REVIVED = MAX_BITS // 2  # bits of the channels that a layer without any has again
_BATCH = 20  # policies that are tried at once

Accuracies = Callable[[jax.Array], jax.Array]
"""[policies, channels of all layers] int32 -> [policies] float32."""


class Found(NamedTuple):
    """Attributes:
    policy: the best, [channels of all layers] int32.
    accuracy: its.
    rewards: [evaluations] float32, of each policy that was tried, in order.
    """

    policy: jax.Array
    accuracy: float
    rewards: jax.Array


class Trials(NamedTuple):
    """What was tried: `policies` [n, channels of all layers], `rewards` [n]."""

    policies: jax.Array
    rewards: jax.Array

    def and_more(self, other: Trials) -> Trials:
        return Trials(*(jnp.concatenate(pair) for pair in zip(self, other, strict=True)))

    def best(self) -> Found:
        """Raises ValueError if no accuracy is a number."""
        first = jnp.argmax(_numbers(self.rewards))
        if bool(jnp.isnan(self.rewards[first])):
            raise ValueError(
                f"search: got NaN for the accuracy of all {len(self.rewards)} policies"
            )
        return Found(self.policies[first], float(self.rewards[first]), self.rewards)


def random_search(
    setting: Setting, accuracies: Accuracies, key: jax.Array, evaluations: int
) -> Found:
    """Actions drawn evenly."""
    shape = (evaluations, len(setting.network.layers), ACTIONS)
    policies = _drawn(setting, key, shape)
    parts = [policies[i : i + _BATCH] for i in range(0, evaluations, _BATCH)]
    return Trials(policies, jnp.concatenate([accuracies(part) for part in parts])).best()


def evolution(
    setting: Setting,
    accuracies: Accuracies,
    key: jax.Array,
    evaluations: int,
    start: jax.Array | None = None,
    batch: int = _BATCH,
) -> Found:
    """The best policies so far, crossed and changed a little, again and again.

    A child has each layer, or all that write to the same slots, from one of two parents; then some layers, and some channels, have a bit more or less, and some groups of
    layers fewer or more slots, or, where they may, none; what is left of the budget goes to layers drawn by chance. Of many such children those are tried that keep to the budget.

    Args:
      setting: what there is to decide, and the budget.
      accuracies: of policies.
      key: one key, one result.
      evaluations: how many policies are tried.
      start: [n, channels of all layers], what to begin with, such as policies by rule, and children of these; by default
        policies drawn evenly.
      batch: how many policies are tried at once.
    """
    first, *keys = jax.random.split(key, max(-(-evaluations // batch), 1))
    compiled = jax.jit(lambda *args: _children(setting, *args, batch))

    def bred(key: jax.Array, parents: jax.Array, tried: jax.Array) -> jax.Array:
        """[batch, ...], of as many parents as there are, by one program for any number of them."""
        parents = parents[jnp.arange(_PARENTS) % len(parents)]
        room = jnp.full((evaluations, tried.shape[1]), -1)
        return compiled(key, parents, room.at[: len(tried)].set(tried))

    if start is None:
        policies = _drawn(setting, first, (batch, len(setting.network.layers), ACTIONS))
    else:
        policies = jnp.concatenate([start, bred(first, start, start)])
    policies = policies[:batch][:evaluations]
    rewards = accuracies(policies)
    for one in keys:
        left = min(batch, evaluations - len(rewards))
        parents = policies[jnp.argsort(-_numbers(rewards))[:_PARENTS]]
        children = bred(one, parents, policies)[:left]
        policies = jnp.concatenate([policies, children])
        rewards = jnp.concatenate([rewards, accuracies(children)])
    return Trials(policies, rewards).best()


def _numbers(rewards: jax.Array) -> jax.Array:
    """With the least there can be for NaN."""
    return jnp.where(jnp.isnan(rewards), -jnp.inf, rewards)


def _drawn(setting: Setting, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[n, channels of all layers], by actions drawn evenly. shape: [n, layers, 3]."""
    policies = jax.jit(jax.vmap(lambda one: decided(setting, one).policy))
    return policies(jax.random.uniform(key, shape))


def _children(
    setting: Setting, key: jax.Array, parents: jax.Array, before: jax.Array, batch: int
) -> jax.Array:
    """[batch, channels of all layers], new ones first; parents that cannot have as many within the budget are there again.

    before: [evaluations, channels of all layers], what was tried.
    """
    children = jax.vmap(lambda one: _child(setting, one, parents))(
        jax.random.split(key, _DRAWN * batch)
    )
    fits = jax.vmap(lambda one: cost_of(setting, one))(children) <= setting.limit
    is_new = ~jax.vmap(lambda one: jnp.any(jnp.all(one == before, axis=1)))(children)
    order = jnp.where(fits, jnp.where(is_new, 0, 1), 2)
    first = jnp.argsort(order, stable=True)[:batch]
    again = parents[jnp.arange(batch) % len(parents)]
    return jnp.where(fits[first, None], children[first], again)


def _child(setting: Setting, key: jax.Array, parents: jax.Array) -> jax.Array:
    network, slots = setting.network, setting.network.slot_of
    layer_of, layers = jnp.asarray(network.layer_of), len(network.layers)
    keys = jax.random.split(key, 11)
    mother, father = parents[jax.random.randint(keys[0], (2,), 0, len(parents))]
    of_mother = jax.random.bernoulli(keys[1], 0.5, (layers,))[together(setting)]
    policy = jnp.where(of_mother[layer_of], mother, father)
    # How much is changed differs from child to child.
    rate = jnp.exp(jax.random.uniform(keys[2], minval=jnp.log(1 / layers), maxval=jnp.log(0.5)))
    of_layer = _steps(keys[3], rate, layers)[layer_of]
    of_channels = jnp.exp(jax.random.uniform(keys[5], minval=jnp.log(_FEW), maxval=jnp.log(0.2)))
    of_channel = _steps(keys[4], of_channels, len(slots))
    wide = jnp.where(policy > 0, jnp.clip(policy + of_layer + of_channel, 1, MAX_BITS), 0)
    # The slots of a group that live are its first ones by importance, up to a number.
    group, groups = setting.group_of_slot[slots], len(setting.sizes)
    last = jnp.where((wide > 0) & (group >= 0), setting.rank[slots] + 1, 0)
    number = jnp.zeros(groups + 1, jnp.int32).at[group].max(last)[:groups]
    moved = jax.random.bernoulli(keys[6], rate, (groups,))
    wanted = number.astype(jnp.float32) * jnp.exp(0.3 * jax.random.normal(keys[7], (groups,)))
    nearest = jnp.round(wanted / setting.multiple).astype(jnp.int32) * setting.multiple
    number = jnp.where(moved, jnp.maximum(nearest, setting.multiple), number)
    if setting.empty:
        turned = jax.random.bernoulli(keys[8], rate / 2, (groups,))
        some = jnp.ceil(jax.random.uniform(keys[9], (groups,)) * setting.sizes).astype(jnp.int32)
        again = jnp.where(number > 0, 0, whole_number(setting, some))
        moved, number = moved | turned, jnp.where(turned, again, number)
    kept = (group < 0) | (setting.rank[slots] < of_slots(setting, number)[slots])
    typical = jnp.zeros(layers, jnp.int32).at[layer_of].max(wide)[layer_of]
    typical = jnp.where(typical > 0, typical, _REVIVED)
    revived = jnp.where((wide == 0) & of_slots(setting, moved)[slots], typical, wide)
    child = jnp.where(kept, jnp.maximum(revived, least_policy(setting)[0]), 0)
    return _filled(setting, keys[10], in_multiples(setting, settled(setting, child)))


def _filled(setting: Setting, key: jax.Array, policy: jax.Array) -> jax.Array:
    """With a bit more for whole layers, one after the other in any order, where the budget is left for it."""
    if setting.cost == "macs":  # bits cost nothing
        return policy
    layer_of, layers = jnp.asarray(setting.network.layer_of), len(setting.network.layers)

    def raised(policy: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
        more = (layer_of == layer) & (policy > 0) & (policy < MAX_BITS)
        wide = jnp.where(more, policy + 1, policy)
        return jnp.where(cost_of(setting, wide) <= setting.limit, wide, policy), None

    return lax.scan(raised, policy, jax.random.permutation(key, layers))[0]


def _steps(key: jax.Array, rate: jax.Array, number: int) -> jax.Array:
    """[number] of -1, 0 and 1, the others with 1 - rate."""
    which, sign = jax.random.split(key)
    step = 2 * jax.random.bernoulli(sign, 0.5, (number,)).astype(jnp.int32) - 1
    return jnp.where(jax.random.bernoulli(which, rate, (number,)), step, 0)
