"""The bits of every channel of a trained model, under a budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

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
from jpq_jax.policy.file_size import FileLimit, codes_of, file_limit_of, lengths_of
from jpq_jax.policy.importance import Criterion, importance_of
from jpq_jax.policy.network import Costs, alive, by_path, costs, network_of, without_dead
from jpq_jax.policy.search import Accuracies, Trials, evolution, random_search
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
    accuracy: of the codes, on the examples that were searched with.
    rewards: [evaluations] of all that was tried, in order.
    sensed: how many of these, the first ones, tell how sensitive each layer is; they are not of policies within the limit.
    codes: the params with the kernels on their grids, for `artifact.save`: the compressed model, without more training.
    """

    bits: dict[str, jax.Array]
    params: PyTree
    costs: Costs
    accuracy: float
    rewards: jax.Array
    sensed: int
    codes: PyTree


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
    file: Callable[[PyTree], PyTree] | None = None,
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
      cost: "bits" of the weights that are left, "macs" for one example, "bit_operations", or "bytes" of the file of the codes. These
        are estimated while policies are made; the best one is taken whose file, written, keeps to the limit.
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
      file: from the codes to the tree that will be saved, where bytes are limited and there is more to save; extras don't count.
      progress: told how far the search is, after every few policies.

    Raises:
      ValueError: no such method, cost or criterion; no layer, or a leaf that is not one's kernel; weights that are not finite; too few
        evaluations; accuracies that are all NaN; or a limit that not even the least policy keeps to: one bit for the channels that
        stay, a tenth of each layer's that may go, rounded up to a multiple, or none of them with `empty`; or, of those tried, none does.
    """
    _check(method, cost, params, evaluations=evaluations, multiple=multiple, at_once=at_once)
    in_bytes = cost == "bytes"
    if file is not None and not in_bytes:
        raise ValueError(
            f"find_policy: got file= with cost={cost!r}, expected it with 'bytes' only"
        )
    network = network_of(apply, params, example, where=where)
    importance = importance_of(network, params, criterion, gradients)
    tables = tables_of(network, params)

    def coded(policy: jax.Array) -> PyTree:
        return codes_of(network, params, tables, policy)

    setting = setting_of(
        network,
        importance,
        cost,
        math.inf if in_bytes else limit,
        lengths=lengths_of(network, params, tables) if in_bytes else None,
        shared=shared,
        multiple=multiple,
        empty=empty,
    )
    measure = accuracies(network, params, tables, right, at_once)
    if progress is not None:
        measure = _told(measure, progress)
    file_limit = file_limit_of(limit, coded, file, params) if in_bytes else None
    rules = _Rules(tables, measure, file_limit)
    found = _found(setting, rules, method, evaluations, seed)
    best = found.trials.best(rules.fits)
    return Policy(
        by_path(network, best.policy),
        without_dead(network, params, alive(network, best.policy)),
        costs(network, best.policy),
        best.accuracy,
        jnp.concatenate([found.before, found.trials.rewards]),
        len(found.before),
        coded(best.policy),
    )


def _check(method: str, cost: str, params: PyTree, **numbers: int) -> None:
    for name, got, known in (("method", method, METHODS), ("cost", cost, get_args(Cost))):
        if got not in known:
            raise ValueError(f"find_policy: got {name}={got!r}, expected one of {', '.join(known)}")
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


class _Found(NamedTuple):
    """Attributes:
    before: [n], accuracies that rules measured first.
    trials: the policies tried.
    """

    before: jax.Array
    trials: Trials


def _found(setting: Setting, rules: _Rules, method: Method, evaluations: int, seed: int) -> _Found:
    key = jax.random.key(seed)
    if method in ("random", "agent"):
        search = random_search if method == "random" else agent_search
        if rules.limit is not None:
            setting = rules.by("magnitude", setting).setting
        return _Found(jnp.zeros(0), search(setting, rules.measure, key, evaluations))
    if method != "evolution":
        ruled = rules.by(method, setting)
        policies = ruled.policy[None]
        return _Found(ruled.measured, Trials(policies, rules.measure(policies)))
    least = len(setting.network.layers) + 1 + len(_RULES)
    if evaluations < least:
        raise ValueError(
            f"find_policy: got evaluations={evaluations}, expected at least {least} for evolution: as many as "
            "there are layers, and one, and one for each of the rules it begins with"
        )
    each = [rules.by(rule, setting) for rule in _RULES]
    before = jnp.concatenate([ruled.measured for ruled in each])
    left, start = evaluations - len(before), jnp.stack([ruled.policy for ruled in each])
    trials = evolution(each[-1].setting, rules.measure, key, left, start=start, fits=rules.fits)
    return _Found(before, trials)


class _Ruled(NamedTuple):
    """Attributes:
    setting: with the limit at which the rule keeps to that of a file, if there is one.
    policy: the rule's.
    measured: [n], accuracies, on the way.
    """

    setting: Setting
    policy: jax.Array
    measured: jax.Array


class _Rules(NamedTuple):
    """What rules go by.

    Attributes:
      tables: of errors.
      measure: accuracies.
      limit: of the file, if it is limited.
    """

    tables: tuple[Table, ...]
    measure: Accuracies
    limit: FileLimit | None

    def fits(self, policy: jax.Array) -> bool:
        return self.limit is None or self.limit.fits(policy)

    def by(self, name: Method, setting: Setting) -> _Ruled:
        measured = jnp.zeros(0)
        rule: Callable[[Setting], jax.Array] = uniform_policy
        if name == "magnitude":
            rule = functools.partial(magnitude_policy, tables=self.tables)
        elif name == "lagrangian":
            sensitivity, measured = sensitivity_of(setting, self.tables, self.measure)
            rule = functools.partial(lagrangian_policy, tables=self.tables, sensitivity=sensitivity)
        if self.limit is not None:
            return _Ruled(*self.limit.met(setting, rule), measured)
        return _Ruled(setting, rule(setting), measured)
