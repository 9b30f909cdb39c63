"""The bits of every channel of a trained model, under a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpq_jax.plan import Where, check_finite
from jpq_jax.policy.agent import agent_search
from jpq_jax.policy.allocation import (
    lagrangian_policy,
    magnitude_policy,
    sensitivity_of,
    uniform_policy,
)
from jpq_jax.policy.decisions import Cost, Setting, setting_of
from jpq_jax.policy.evaluation import Table, accuracies, tables_of
from jpq_jax.policy.importance import Criterion, importance_of
from jpq_jax.policy.network import Costs, alive, by_path, costs, network_of, without_dead
from jpq_jax.policy.search import Accuracies, Found, Trials, evolution, random_search
from jpq_jax.vocabulary import PyTree, leaves_with_paths

Method = Literal["evolution", "agent", "random", "lagrangian", "magnitude", "uniform"]
_RULES: tuple[Method, ...] = ("uniform", "magnitude", "lagrangian")
METHODS: tuple[Method, ...] = ("evolution", "agent", "random", "lagrangian", "magnitude", "uniform")


Progress = Callable[[int], None]
"""Called with the number of policies tried so far."""


class Policy(NamedTuple):
    """Attributes:
    bits: for each kernel by its path, [channels] int32 in 0..8, as `channelwise` takes them.
    params: the given ones with zeros at all that belongs to channels that are dead in all layers that share them, biases and norms
      included: what to train on from, under `channelwise(bits)`; `shrink` takes the dead out.
    costs: of the model under the policy.
    accuracy: on the examples that were searched with.
    rewards: [evaluations] of each policy that was tried, those by which the layers' sensitivity is measured first.
    """

    bits: dict[str, jax.Array]
    params: PyTree
    costs: Costs
    accuracy: float
    rewards: jax.Array


def find_policy(
    apply: Callable[..., Any],
    params: PyTree,
    example: Any,
    right: Callable[[PyTree], jax.Array],
    *,
    limit: float,
    cost: Cost = "bits",
    evaluations: int = 300,
    seed: int = 0,
    method: Method = "evolution",
    criterion: Criterion = "magnitude",
    gradients: PyTree | None = None,
    shared: bool = True,
    multiple: int = 1,
    empty: bool = False,
    at_once: int = 1,
    where: Where = None,
    progress: Progress | None = None,
) -> Policy:
    """Searches the policy of highest accuracy without training, of those that keep to a limit.

        max over bits of each channel  accuracy   subject to   cost(bits) <= limit

    Args:
      apply: (params, example) -> outputs, of the model in use.
      params: its trained weights, dense.
      example: one input, in a batch of 1, or its shape.
      right: from params to the share of examples that the model gets right; pure. Not the test images.
      limit: of the cost.
      cost: "bits" of the weights that are left, "macs" for one example, or "bit_operations".
      evaluations: how many policies are tried; a rule tries one, the Lagrangian as many as there are layers, and two.
      seed: same seed, same result.
      method: "evolution" begins with what the rules give, and is the default since it was the best; "agent" is the hierarchical
        agent of AJPQ.
      criterion: which channels of a layer go first, see `importance_of`.
      gradients: of the loss, for "taylor".
      shared: whether channels may go that several layers share, as those of a residual stream.
      multiple: of a layer's channels, those that stay are so many, or twice, and so on, or all; such as 8, where other numbers are
        no faster.
      empty: whether a layer may be left without channels, as within a residual block that is not needed; such models take
        `shrink(..., empty=True)`; `channelwise` then takes no bits for what has no elements.
      at_once: how many policies are measured side by side, by `jax.vmap`, and not one after the other; more pays on accelerators.
      where: which leaves, as in `plan_leaves`.
      progress: told how far the search is, after every few policies.

    Raises:
      ValueError: no such method or criterion; no layer, or a leaf that is not one's kernel; weights that are not finite; too few
        evaluations; accuracies that are all NaN; or a limit that not even the least policy keeps to: one bit for the channels that
        stay, a tenth of each layer's that may go, rounded up to a multiple, or none of them with `empty`.
    """
    _check(method, params, evaluations=evaluations, multiple=multiple, at_once=at_once)
    network = network_of(apply, params, example, where=where)
    importance = importance_of(network, params, criterion, gradients)
    setting = setting_of(
        network, importance, cost, limit, shared=shared, multiple=multiple, empty=empty
    )
    tables = tables_of(network, params)
    measure = accuracies(network, params, tables, right, at_once)
    if progress is not None:
        measure = _told(measure, progress)
    found = _found(setting, tables, measure, method, evaluations, seed)
    return Policy(
        by_path(network, found.policy),
        without_dead(network, params, alive(network, found.policy)),
        costs(network, found.policy),
        found.accuracy,
        found.rewards,
    )


def _check(method: str, params: PyTree, **numbers: int) -> None:
    if method not in METHODS:
        raise ValueError(
            f"find_policy: got method={method!r}, expected one of {', '.join(METHODS)}"
        )
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"find_policy: got {name}={number}, expected at least 1")
    for path, leaf in leaves_with_paths(params):
        if not isinstance(leaf, jax.Array | np.ndarray):  # codes among others
            raise ValueError(
                f"find_policy: leaf {path!r}: got {type(leaf).__name__}, expected an array; see `dequantize`"
            )
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            check_finite(path, leaf)


def _told(measure: Accuracies, progress: Progress) -> Accuracies:
    tried = 0

    def of_policies(policies: jax.Array) -> jax.Array:
        nonlocal tried
        measured = jax.block_until_ready(measure(policies))
        tried += len(policies)
        progress(tried)
        return measured

    return of_policies


def _found(
    setting: Setting,
    tables: tuple[Table, ...],
    measure: Accuracies,
    method: Method,
    evaluations: int,
    seed: int,
) -> Found:
    key = jax.random.key(seed)
    if method == "random":
        return random_search(setting, measure, key, evaluations)
    if method == "agent":
        return agent_search(setting, measure, key, evaluations)
    if method != "evolution":
        policy, before = _by_rule(setting, tables, measure, method)
        after = measure(policy[None])
        return Trials(policy[None], after).best()._replace(rewards=jnp.concatenate([before, after]))
    rules = [_by_rule(setting, tables, measure, rule) for rule in _RULES]
    before = jnp.concatenate([measured for _, measured in rules])
    left = evaluations - len(before)
    if left < len(rules):
        raise ValueError(
            f"find_policy: got evaluations={evaluations}, expected at least {len(before) + len(rules)} for "
            "evolution: as many as there are layers, and one, and one for each of the rules it begins with"
        )
    start = jnp.stack([policy for policy, _ in rules])
    found = evolution(setting, measure, key, left, start)
    return found._replace(rewards=jnp.concatenate([before, found.rewards]))


def _by_rule(
    setting: Setting, tables: tuple[Table, ...], measure: Accuracies, rule: Method
) -> tuple[jax.Array, jax.Array]:
    """The policy, and what was measured on the way."""
    if rule == "uniform":
        return uniform_policy(setting), jnp.zeros(0)
    if rule == "magnitude":
        return magnitude_policy(setting, tables), jnp.zeros(0)
    sensitivity, measured = sensitivity_of(setting, tables, measure)
    return lagrangian_policy(setting, tables, sensitivity), measured
