"""From trained params and the optimizer's state to exact codes within the budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import core as jax_core

from jpq_jax.file_budget import Interval, largest_within
from jpq_jax.plan import check_finite
from jpq_jax.projection.clustering import codes_of_clusters
from jpq_jax.projection.planner import Plan
from jpq_jax.projection.published import quantize_at, sparsify, to_codes
from jpq_jax.projection.sized import at_price
from jpq_jax.projection.sized_plan import SizedPlan
from jpq_jax.projection.sketching import Curvature
from jpq_jax.transforms.leaves import floats
from jpq_jax.transforms.states import check_equal_in_clusters, check_projected, states_in
from jpq_jax.vocabulary import Codes, PyTree, dequantize, dtype_name, leaves_with_paths

_RANGE = 40.0  # octaves of the price of a bit, around that of a plan


def finalize(
    params: PyTree, state: Any, *, file: Callable[[PyTree], PyTree] | None = None
) -> PyTree:
    """Codes of the params, by what the optimizer's state holds of budget, bit-widths and values.

    For each `AdmmState` in `state`, its leaves are sparsified at its bit-widths (0-1 knapsack, exact in the
    budget) and quantized by k-means at the same bit-widths, as the published evaluation does. For each
    `ClusterState` the values of its clusters are taken. For each `LatentState` its latents, and for each `ProjectState`, `SplitState` and `FreezeState` the params, are coded by
    its plan. A value that no weight
    takes is dropped, so the result may use less than the budget, and never uses more. For a budget in bytes, the
    lowest price of a bit is searched at which `artifact.encode` keeps to it.

    Args:
      params: the trained params.
      state: the optimizer's state, whatever it is wrapped in, a TrainState or an `nnx.Optimizer` among others; of a single model.
      file: from the result to the tree that will be saved, where a budget is in bytes and there is more to save.

    Returns:
      The compressed tree: `params` with `Codes` in place of the compressed leaves, after pruning alone with zeros in their
      arrays; with a budget in bytes, those that may lose digits are rounded. Traced, it is only about as large as a budget in bytes.

    Raises:
      ValueError: no such state in `state`, or one whose types are lost, or of several members in one; one that does not fit the
        params or, unless traced, has seen no update, by which there is no plan yet; unless traced, params that are not what the latents
        project to, or not equal within their clusters; weights that are not finite; or a budget in bytes that even zeros exceed.
    """
    states = states_in(state)
    planned = _planned(params, states)
    published: dict[str, Any] = {}
    # Within `latent` the clusters are those of the latents.
    covered = {path for part in planned for path in part.leaves}
    for cluster_state in states["ClusterState"]:
        published |= _clustered(params, cluster_state.cluster_of, covered)
    for admm_state in states["AdmmState"]:
        leaves = _fitting(params, admm_state.target)
        published |= _coded(leaves, _project, admm_state.leaf_bits, admm_state.bit_budget)

    def codes_at(price: float) -> PyTree:
        codes = dict(published)
        for part in planned:
            codes |= _coded(part.leaves, _assign, _at(part, price), part.costs, dtypes=part.dtypes)
        leaves = [codes.get(path, leaf) for path, leaf in leaves_with_paths(params)]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    budgets = [part.plan.sized_nbytes for part in planned if isinstance(part.plan, SizedPlan)]
    if not budgets or any(isinstance(x, jax_core.Tracer) for x in jax.tree.leaves(planned)):
        return codes_at(1.0)
    of_file = file or (lambda codes: codes)
    prices = Interval(-_RANGE, 0.0, _RANGE)
    nbytes = min(int(budget) for budget in budgets)
    return codes_at(largest_within(nbytes, lambda price: of_file(codes_at(price)), prices).price)


def _clustered(params: PyTree, cluster_of: PyTree, covered: set[str]) -> dict[str, Any]:
    """Codes of the leaves that are not covered by a plan."""
    clusters = {path: of for path, of in _named(cluster_of).items() if path not in covered}
    leaves = {path: leaf for path, leaf in _fitting(params, cluster_of).items() if path in clusters}
    coded = _coded(leaves, _of_clusters, list(clusters.values()))
    check_equal_in_clusters(leaves, [dequantize(codes) for codes in coded.values()])
    return coded


class _Part(NamedTuple):
    """Attributes:
    leaves: weights by path.
    plan: by which they are coded.
    costs: the curvature.
    dtypes: of the params, where the weights are not these.
    """

    leaves: dict[str, jax.Array]
    plan: Any
    costs: list[jax.Array] | None
    dtypes: tuple[str, ...] | None = None


def _planned(params: PyTree, states: dict[str, list[Any]]) -> list[_Part]:
    parts = []
    for latent_state in states["LatentState"]:
        _check_planned(latent_state.latent_count)
        found, latents = _fitting(params, latent_state.latents), _named(latent_state.latents)
        costs = latent_state.latent_curvature
        costs = None if costs is None else list(_named(costs).values())
        plan = _plain(latent_state.latent_plan)
        for path, leaf in (*latents.items(), *found.items()):
            check_finite(path, leaf)
        check_projected(found, list(latents.values()), plan, costs)
        parts.append(_Part(latents, plan, costs, _dtypes(found)))
    for project_state in states["ProjectState"]:
        _check_planned(project_state.project_count)
        leaves = _fitting(params, project_state.project_leaves, of_shape=False)
        parts.append(_Part(leaves, _plain(project_state.project_plan), None))
    for split_state in states["SplitState"]:
        _check_planned(split_state.split_count)
        leaves = _fitting(params, split_state.split_target)
        parts.append(_Part(leaves, _plain(split_state.split_plan), None))
    for freeze_state in states["FreezeState"]:
        _check_planned(freeze_state.freeze_count)
        leaves = _fitting(params, freeze_state.frozen)
        parts.append(_Part(leaves, _plain(freeze_state.freeze_plan), None))
    return parts


def _plain(plan: Any) -> Any:
    """With arrays for what Flax NNX has as variables of its own."""
    return jax.tree.map(jnp.asarray, plan, is_leaf=lambda x: hasattr(x, "__jax_array__"))


def _at(part: _Part, price: float) -> Any:
    """The plan, where the budget is in bytes at so many times its price of a bit."""
    if price == 1 or not isinstance(part.plan, SizedPlan):
        return part.plan
    return _at_price(part.plan, list(part.leaves.values()), jnp.float32(math.log2(price)))


@jax.jit
def _at_price(plan: SizedPlan, leaves: list[jax.Array], octaves: jax.Array) -> SizedPlan:
    return at_price(plan, floats(leaves), octaves)


def _check_planned(count: jax.Array) -> None:
    if not isinstance(count, jax_core.Tracer) and int(count) == 0:
        raise ValueError(
            "finalize: got a state before its first update, expected one after it: it has no plan yet"
        )


def _named(masked: PyTree) -> dict[str, jax.Array]:
    """The leaves that are compressed, by path."""

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    named = leaves_with_paths(masked, is_leaf=is_masked)
    return {path: leaf for path, leaf in named if not is_masked(leaf)}


def _fitting(params: PyTree, masked: PyTree, of_shape: bool = True) -> dict[str, jax.Array]:
    """The params of a state's leaves. By path, since a state's containers may differ from the params' (Flax NNX has
    variables of its own there).
    """
    found = dict(leaves_with_paths(params))
    fitting = {}
    for path, like in _named(masked).items():
        leaf = found.get(path)
        if leaf is None:
            raise ValueError(
                f"finalize: the state has a leaf {path!r}, the params have {list(found)}"
            )
        if of_shape and leaf.shape != like.shape:
            raise ValueError(f"leaf {path!r}: got shape {leaf.shape}, the state has {like.shape}")
        fitting[path] = leaf
    return fitting


def _coded(
    leaves: dict[str, jax.Array],
    code: Any,
    *of_state: Any,
    dtypes: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    for path, leaf in leaves.items():
        check_finite(path, leaf)
    found = code(dtypes or _dtypes(leaves), list(leaves.values()), *of_state)
    return dict(zip(leaves, found, strict=True))


def _dtypes(leaves: dict[str, jax.Array]) -> tuple[str, ...]:
    return tuple(dtype_name(leaf) for leaf in leaves.values())


@functools.partial(jax.jit, static_argnums=0)
def _project(
    dtypes: tuple[str, ...], leaves: list[jax.Array], bits: jax.Array, limit: jax.Array
) -> list[Codes]:
    weights = sparsify(floats(leaves), bits, limit)
    return to_codes(weights, quantize_at(weights, bits), dtypes)


@functools.partial(jax.jit, static_argnums=0)
def _of_clusters(
    dtypes: tuple[str, ...], leaves: list[jax.Array], clusters: list[jax.Array]
) -> list[Codes]:
    return [
        codes_of_clusters(leaf.astype(jnp.float32), cluster_of, dtype)
        for leaf, cluster_of, dtype in zip(leaves, clusters, dtypes, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _assign(
    dtypes: tuple[str, ...], latents: list[jax.Array], plan: Plan, curvature: Curvature
) -> Sequence[Codes | jax.Array]:
    return plan.codes(floats(latents), dtypes, curvature)
