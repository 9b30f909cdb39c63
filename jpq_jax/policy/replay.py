"""What an agent has seen, in arrays of a fixed length."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Replay(NamedTuple):
    """Attributes:
    states: [room, features].
    actions: [room, numbers].
    rewards: [room].
    filled: [] int32, how many rows are.
    """

    states: jax.Array
    actions: jax.Array
    rewards: jax.Array
    filled: jax.Array


def empty(room: int, features: int, numbers: int) -> Replay:
    return Replay(
        jnp.zeros((room, features)), jnp.zeros((room, numbers)), jnp.zeros(room), jnp.int32(0)
    )


def added(replay: Replay, states: jax.Array, actions: jax.Array, rewards: jax.Array) -> Replay:
    """With more rows, of which there must be room for all."""
    at = replay.filled
    return Replay(
        jax.lax.dynamic_update_slice(replay.states, states, (at, 0)),
        jax.lax.dynamic_update_slice(replay.actions, actions, (at, 0)),
        jax.lax.dynamic_update_slice(replay.rewards, rewards, (at,)),
        at + len(rewards),
    )


def sampled(replay: Replay, key: jax.Array, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows drawn evenly, with replacement: states, actions, rewards."""
    rows = jax.random.randint(key, (number,), 0, replay.filled)
    return replay.states[rows], replay.actions[rows], replay.rewards[rows]
