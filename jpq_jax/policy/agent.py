"""A hierarchical agent that goes through a model's layers: a layer controller says which share of a layer's channels stays, a channel
controller then the bits of these, by one criterion of importance (Tang, Wei, Li, 2020, arXiv 2011.06231).

The paper does not publish state, action and reward; these are ours, after AMC (He et al., 2018, arXiv 1802.03494) and HAQ (Wang et
al., 2019, arXiv 1811.08886):

- state of a layer: its kind, shape, stride, place, share of size and of computation, the mean and spread of its channels' importance, whether
  it decides for others, what the budget's share spent so far is, and the action before;
- action: three numbers from 0 to 1, see `decisions.py`; what the budget does not allow is scaled down, and never punished;
- reward: accuracy on the examples that are searched with, in units of its spread so far; every step of an episode gets it,
  undiscounted.

It learns by deep deterministic policy gradients (Lillicrap et al., 2016, arXiv 1509.02971): a critic that tells the reward of a state
and an action, and the two controllers, that climb it. As an episode has one reward, at its end, and nothing is discounted, the critic
is fitted to that itself, and needs no target networks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jpq_jax.policy.decisions import ACTIONS, Setting, allowed, cost_of, least_policy
from jpq_jax.policy.replay import Replay, added, empty, sampled
from jpq_jax.policy.search import Accuracies, Trials

_HIDDEN = 64
_BATCH = 10  # episodes that are evaluated together
_FIRST = 0.2  # of the episodes are drawn evenly
_NOISE, _CALM = 0.3, 0.03  # spread of exploration after these, and at the end
_UPDATES = 200  # of the networks after a batch
_SAMPLE = 128  # steps in one
_RATE = 2e-3
_FEATURES = 16

Weights = Any


class Agent(NamedTuple):
    """Attributes:
    layer_controller: state -> share kept.
    channel_controller: state and share -> bits of the most and the least important.
    critic: state and action -> reward.
    """

    layer_controller: Weights
    channel_controller: Weights
    critic: Weights


def agent_search(
    setting: Setting, accuracies: Accuracies, key: jax.Array, evaluations: int
) -> Trials:
    """One seed, one result."""
    start, key = jax.random.split(key)
    agent = new_agent(start)
    optimizer = optax.adam(_RATE)
    state = optimizer.init(agent)
    layers = len(setting.network.layers)
    replay = empty(evaluations * layers, _FEATURES, ACTIONS)
    features = jnp.asarray(_features(setting))
    episodes = jax.jit(lambda *args: _episodes(setting, features, *args))
    learn = jax.jit(lambda *args: _learned(optimizer, *args))
    trials = None
    while trials is None or len(trials.rewards) < evaluations:
        done = 0 if trials is None else len(trials.rewards)
        key, drawn, learning = jax.random.split(key, 3)
        made = _Episodes(
            *(x[: evaluations - done] for x in episodes(agent, drawn, _spread(done / evaluations)))
        )
        new = Trials(made.policies, accuracies(made.policies))
        trials = new if trials is None else trials.and_more(new)
        replay = added(
            replay,
            made.states.reshape(-1, _FEATURES),
            made.actions.reshape(-1, ACTIONS),
            jnp.repeat(_finite(new.rewards, trials.rewards), layers),
        )
        agent, state = learn(agent, state, replay, learning)
    return trials


def _finite(rewards: jax.Array, known: jax.Array) -> jax.Array:
    """Where an accuracy is not finite, the least of all known that are: one that is not would be in all weights of the networks soon."""
    is_known = jnp.isfinite(known)
    least = jnp.min(known, where=is_known, initial=jnp.inf)
    return jnp.where(jnp.isfinite(rewards), rewards, jnp.where(jnp.any(is_known), least, 0))


def new_agent(key: jax.Array) -> Agent:
    sizes = ((_FEATURES, 1), (_FEATURES + 1, 2), (_FEATURES + ACTIONS, 1))
    return Agent(
        *(_network(k, *size) for k, size in zip(jax.random.split(key, 3), sizes, strict=True))
    )


def acted(agent: Agent, state: jax.Array) -> jax.Array:
    """[..., 3] from [..., features], without exploration."""
    keep = jax.nn.sigmoid(_value(agent.layer_controller, state))
    bits = jax.nn.sigmoid(_value(agent.channel_controller, jnp.concatenate([state, keep], -1)))
    return jnp.concatenate([keep, bits], -1)


def _spread(share: float) -> jax.Array:
    """Of exploration, when this share of the evaluations is over; infinite while actions are drawn evenly."""
    if share < _FIRST:
        return jnp.float32(jnp.inf)
    along = (share - _FIRST) / (1 - _FIRST)
    return jnp.float32(_NOISE * (_CALM / _NOISE) ** along)


class _Episodes(NamedTuple):
    """[episodes, layers, ...]: states, and actions as they were allowed; and the policies that came of them."""

    states: jax.Array
    actions: jax.Array
    policies: jax.Array


def _episodes(
    setting: Setting, features: jax.Array, agent: Agent, key: jax.Array, spread: jax.Array
) -> _Episodes:
    """spread: of exploration; infinite to draw actions evenly."""
    layers = len(setting.network.layers)
    even, noise = jax.random.split(key)
    drawn = jax.random.uniform(even, (_BATCH, layers, ACTIONS))
    moves = jax.random.normal(noise, (_BATCH, layers, ACTIONS))

    def one(drawn: jax.Array, moves: jax.Array) -> _Episodes:
        def step(carry: Any, at: Any) -> Any:
            policy, kept, before = carry
            layer, even, move = at
            spent = cost_of(setting, policy) / setting.limit
            state = jnp.concatenate([features[layer], spent[None], before])
            wanted = jnp.clip(acted(agent, state) + spread * move, 0, 1)
            action = jnp.where(jnp.isinf(spread), even, wanted)
            policy, kept, action = allowed(setting, policy, kept, layer, action)
            return (policy, kept, action), (state, action)

        start = (*least_policy(setting), jnp.zeros(ACTIONS))
        (policy, _, _), (states, actions) = lax.scan(
            step, start, (jnp.arange(layers), drawn, moves)
        )
        return _Episodes(states, actions, policy)

    return jax.vmap(one)(drawn, moves)


def _features(setting: Setting) -> np.ndarray:
    """[layers, 12], what does not change."""
    network = setting.network
    layers = network.layers
    weights = np.array(
        [layer.channels * layer.taps * layer.inputs.sum() for layer in layers], float
    )
    macs = weights * np.array([layer.positions for layer in layers])
    each = np.asarray(setting.importance) / max(float(jnp.max(setting.importance)), 1e-30)
    of_layer = [each[network.layer_of == i] for i in range(len(layers))]
    columns = [
        [layer.kind == "dense" for layer in layers],
        [layer.kind == "grouped" for layer in layers],
        np.log2([layer.channels for layer in layers]) / 10,
        np.log2([layer.taps * layer.inputs.sum() for layer in layers]) / 15,
        np.log2([layer.positions for layer in layers]) / 20,
        np.log2([layer.stride for layer in layers]) / 4,
        np.arange(len(layers)) / len(layers),
        weights / weights.sum(),
        macs / macs.sum(),
        np.isin(np.arange(len(layers)), np.asarray(setting.decider)),
        [one.mean() for one in of_layer],
        [one.std() for one in of_layer],
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _learned(
    optimizer: optax.GradientTransformation,
    agent: Agent,
    state: Any,
    replay: Replay,
    key: jax.Array,
) -> tuple[Agent, Any]:
    filled = jnp.arange(len(replay.rewards)) < replay.filled
    mean = jnp.mean(replay.rewards, where=filled)
    unit = jnp.std(replay.rewards, where=filled) + 1e-6

    def loss(agent: Agent, key: jax.Array) -> jax.Array:
        states, actions, rewards = sampled(replay, key, _SAMPLE)
        told = _value(agent.critic, jnp.concatenate([states, actions], -1))[:, 0]
        fixed = jax.tree.map(lax.stop_gradient, agent.critic)
        climbed = _value(fixed, jnp.concatenate([states, acted(agent, states)], -1))
        return jnp.mean((told - (rewards - mean) / unit) ** 2) - jnp.mean(climbed)

    def update(carry: tuple[Agent, Any], key: jax.Array) -> tuple[tuple[Agent, Any], None]:
        agent, state = carry
        updates, state = optimizer.update(jax.grad(loss)(agent, key), state, agent)
        moved: Any = optax.apply_updates(agent, updates)
        return (moved, state), None

    return lax.scan(update, (agent, state), jax.random.split(key, _UPDATES))[0]


def _network(key: jax.Array, inputs: int, outputs: int) -> Weights:
    sizes = [(inputs, _HIDDEN), (_HIDDEN, _HIDDEN), (_HIDDEN, outputs)]
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, size) * (2 / size[0]) ** 0.5, "b": jnp.zeros(size[1])}
        for k, size in zip(keys, sizes, strict=True)
    ]


def _value(weights: Weights, x: jax.Array) -> jax.Array:
    *hidden, last = weights
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + jnp.broadcast_to(layer["b"], (*x.shape[:-1], _HIDDEN)))
    out = x @ last["w"]
    return out + jnp.broadcast_to(last["b"], out.shape)
