"""Policies by trial, all in equal numbers of evaluations: at random, by evolution, or by an agent (`agent.py`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

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
    of_slots,
    settled,
    together,
    whole_number,
)
from jpq_jax.vocabulary import MAX_BITS, InfeasibleError

_PARENTS = 10  # of a generation
_DRAWN = 16  # children for each that is tried
_FEW = 0.002  # of the channels have a bit more or less, at least
_SPREAD = 0.17  # of the logarithm of a group's number of slots, where it changes: by 0.3, as a standard deviation
_REVIVED = MAX_BITS // 2  # bits of the channels that a layer without any has again
_BATCH = 20  # policies that are tried at once

Accuracies = Callable[[jax.Array], jax.Array]
"""[policies, channels of all layers] int32 -> [policies] float32."""


Fits = Callable[[jax.Array], bool]
"""Whether a policy, [channels of all layers], keeps to a limit that costs only estimate."""


def _all_fit(policy: jax.Array) -> bool:
    del policy
    return True


class Best(NamedTuple):
    """Attributes:
    policy: [channels of all layers] int32.
    accuracy: its.
    """

    policy: jax.Array
    accuracy: float


class Trials(NamedTuple):
    """What was tried, in order.

    Attributes:
      policies: [evaluations, channels of all layers] int32.
      rewards: [evaluations] float32, their accuracies.
    """

    policies: jax.Array
    rewards: jax.Array

    def and_more(self, other: Trials) -> Trials:
        return Trials(*(jnp.concatenate(pair) for pair in zip(self, other, strict=True)))

    def first(self, number: int, fits: Fits) -> list[int]:
        """Which have the highest accuracies of those that fit, the best first; none whose accuracy is NaN."""
        rewards = np.asarray(self.rewards)
        order = np.argsort(-rewards, kind="stable")[: (~np.isnan(rewards)).sum()]  # NaN is last
        fitting = (int(i) for i in order if fits(self.policies[i]))
        return list(itertools.islice(fitting, number))

    def best(self, fits: Fits = _all_fit) -> Best:
        """Of those that fit.

        Raises:
          ValueError: if no accuracy is a number.
          InfeasibleError: if no policy fits.
        """
        if bool(jnp.isnan(self.rewards).all()):
            raise ValueError(
                f"search: got NaN for the accuracy of all {len(self.rewards)} policies"
            )
        for i in self.first(1, fits):
            return Best(self.policies[i], float(self.rewards[i]))
        raise InfeasibleError(
            f"search: of {len(self.rewards)} policies, none with an accuracy keeps to the limit; evolution begins with some that do"
        )


def random_search(
    setting: Setting, accuracies: Accuracies, key: jax.Array, evaluations: int
) -> Trials:
    """Actions drawn evenly."""
    shape = (evaluations, len(setting.network.layers), ACTIONS)
    policies = _drawn(setting, key, shape)
    parts = [policies[i : i + _BATCH] for i in range(0, evaluations, _BATCH)]
    return Trials(policies, jnp.concatenate([accuracies(part) for part in parts]))


def evolution(
    setting: Setting,
    accuracies: Accuracies,
    key: jax.Array,
    evaluations: int,
    start: jax.Array | None = None,
    batch: int = _BATCH,
    fits: Fits = _all_fit,
) -> Trials:
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
      fits: only such policies have children.
    """
    first, *keys = jax.random.split(key, max(-(-evaluations // batch), 1))
    compiled = jax.jit(lambda key, parents, tried: _children(setting, key, parents, tried, batch))

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
        parents = policies[jnp.asarray(Trials(policies, rewards).first(_PARENTS, fits) or [0])]
        children = bred(one, parents, policies)[:left]
        policies = jnp.concatenate([policies, children])
        rewards = jnp.concatenate([rewards, accuracies(children)])
    return Trials(policies, rewards)


def _drawn(setting: Setting, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[n, channels of all layers], by actions drawn evenly. shape: [n, layers, 3]."""
    policies = jax.jit(jax.vmap(lambda one: decided(setting, one).policy))
    return policies(jax.random.uniform(key, shape))


class _Chances(NamedTuple):
    """What a child is made by: numbers drawn evenly from 0 to 1.

    Attributes:
      parents: [2], which.
      of_mother: [layers], from whom each has its bits.
      rates: [2], how much of the layers and of the channels changes.
      layers: [2, layers], whether a layer changes, and which way.
      channels: [2, channels of all layers], likewise.
      sizes: [4, groups], whether the number of a group's slots changes, by how much, whether it turns from none to some or back,
        and to how many.
      order: [layers], in which what is left of the budget is spent.
    """

    parents: jax.Array
    of_mother: jax.Array
    rates: jax.Array
    layers: jax.Array
    channels: jax.Array
    sizes: jax.Array
    order: jax.Array


def _chances(setting: Setting, key: jax.Array, children: int) -> _Chances:
    """[children, ...], drawn at once: a generator for each of them takes long to compile."""
    network, groups = setting.network, len(setting.sizes)
    layers, channels = len(network.layers), len(network.slot_of)
    shapes = ((2,), (layers,), (2,), (2, layers), (2, channels), (4, groups), (layers,))
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    drawn = jnp.split(jax.random.uniform(key, (children, ends[-1])), ends[:-1], axis=1)
    pairs = zip(drawn, shapes, strict=True)
    return _Chances(*(part.reshape(children, *shape) for part, shape in pairs))


def _children(
    setting: Setting, key: jax.Array, parents: jax.Array, before: jax.Array, batch: int
) -> jax.Array:
    """[batch, channels of all layers], new ones first; parents that cannot have as many within the budget are there again.

    before: [evaluations, channels of all layers], what was tried.
    """
    chances = _chances(setting, key, _DRAWN * batch)
    children = jax.vmap(lambda one: _child(setting, one, parents))(chances)
    fits = jax.vmap(lambda one: cost_of(setting, one))(children) <= setting.limit
    is_new = ~jax.vmap(lambda one: jnp.any(jnp.all(one[None] == before, axis=1)))(children)
    order = jnp.where(fits, jnp.where(is_new, 0, 1), 2)
    first = jnp.argsort(order, stable=True)[:batch]
    again = parents[jnp.arange(batch) % len(parents)]
    return jnp.where(fits[first, None], children[first], again)


def _child(setting: Setting, chances: _Chances, parents: jax.Array) -> jax.Array:
    network, slots = setting.network, setting.network.slot_of
    layer_of, layers = jnp.asarray(network.layer_of), len(network.layers)
    mother, father = parents[jnp.floor(chances.parents * len(parents)).astype(jnp.int32)]
    policy = jnp.where((chances.of_mother < 0.5)[together(setting)][layer_of], mother, father)
    # How much is changed differs from child to child.
    least, most = np.log(np.array([[1 / layers, _FEW], [0.5, 0.2]], np.float32))
    rate, of_channels = jnp.exp(least + chances.rates * (most - least))
    steps = _steps(chances.layers, rate)[layer_of] + _steps(chances.channels, of_channels)
    wide = jnp.where(policy > 0, jnp.clip(policy + steps, 1, MAX_BITS), 0)
    # The slots of a group that live are its first ones by importance, up to a number.
    group, groups = setting.group_of_slot[slots], len(setting.sizes)
    last = jnp.where((wide > 0) & (group >= 0), setting.rank[slots] + 1, 0)
    number = jnp.zeros(groups + 1, jnp.int32).at[group].max(last)[:groups]
    moves, size, turns, some = chances.sizes
    moved = moves < rate
    wanted = number.astype(jnp.float32) * (size / (1 - size)) ** _SPREAD
    nearest = jnp.round(wanted / setting.multiple).astype(jnp.int32) * setting.multiple
    number = jnp.where(moved, jnp.maximum(nearest, setting.multiple), number)
    if setting.empty:
        turned = turns < rate / 2
        again = whole_number(setting, jnp.ceil(some * setting.sizes).astype(jnp.int32))
        number = jnp.where(turned, jnp.where(number > 0, 0, again), number)
        moved |= turned
    kept = (group < 0) | (setting.rank[slots] < of_slots(setting, number)[slots])
    typical = jnp.zeros(layers, jnp.int32).at[layer_of].max(wide)[layer_of]
    typical = jnp.where(typical > 0, typical, _REVIVED)
    revived = jnp.where((wide == 0) & of_slots(setting, moved)[slots], typical, wide)
    child = jnp.where(kept, jnp.maximum(revived, least_policy(setting)[0]), 0)
    return _filled(setting, chances.order, in_multiples(setting, settled(setting, child)))


def _filled(setting: Setting, order: jax.Array, policy: jax.Array) -> jax.Array:
    """With a bit more for whole layers, one after the other, where the budget is left for it. order: [layers], of which the least is
    the first.
    """
    if setting.cost == "macs":  # bits cost nothing
        return policy
    layer_of = jnp.asarray(setting.network.layer_of)

    def raised(policy: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
        more = (layer_of == layer) & (policy > 0) & (policy < MAX_BITS)
        wide = jnp.where(more, policy + 1, policy)
        return jnp.where(cost_of(setting, wide) <= setting.limit, wide, policy), None

    return lax.scan(raised, policy, jnp.argsort(order))[0]


def _steps(chances: jax.Array, rate: jax.Array) -> jax.Array:
    """[n] of -1, 0 and 1, the others with 1 - rate. chances: [2, n]."""
    return jnp.where(chances[0] < rate, jnp.where(chances[1] < 0.5, -1, 1), 0)
