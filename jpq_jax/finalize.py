"""From trained params and the optimizer's state to exact codes within the budget."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax
from jax import core as jax_core

from jpq_jax.plan import check_finite
from jpq_jax.projection.planner import Plan
from jpq_jax.projection.published import quantize_at, sparsify, to_codes
from jpq_jax.projection.sketching import Curvature
from jpq_jax.transforms.leaves import floats
from jpq_jax.vocabulary import Codes, PyTree, dtype_name, leaves_with_paths


def finalize(params: PyTree, state: Any) -> PyTree:
    """Codes of the params, by what the optimizer's state holds of budget, bit-widths and values.

    For each `AdmmState` in `state`, its leaves are sparsified at its bit-widths (0-1 knapsack, exact in the
    budget) and quantized by k-means at the same bit-widths, as the published evaluation does. For each
    `LatentState` its latents, and for each `ProjectState` the params, are coded by its plan. A value that no weight
    takes is dropped, so the result may use less than the budget, and never uses more.

    Args:
      params: the trained params.
      state: the optimizer's state, whatever it is wrapped in.

    Returns:
      The compressed tree: `params` with `Codes` in place of the compressed leaves.

    Raises:
      ValueError: no such state in `state`, one that does not fit the params or, unless traced, has seen no update,
        by which there is no plan yet; or weights that are not finite.
    """
    found = [_of_kind(state, name) for name in ("AdmmState", "LatentState", "ProjectState")]
    if not any(found):
        raise ValueError(
            "finalize: found no AdmmState, LatentState or ProjectState in the optimizer's state, expected one"
        )
    codes: dict[str, Codes] = {}
    for admm_state in found[0]:
        leaves = _fitting(params, admm_state.target)
        codes |= _coded(leaves, _project, admm_state.leaf_bits, admm_state.bit_budget)
    for latent_state in found[1]:
        _check_planned(latent_state.latent_count)
        _fitting(params, latent_state.latents)
        costs = latent_state.latent_curvature
        costs = None if costs is None else list(_named(costs).values())
        codes |= _coded(_named(latent_state.latents), _assign, latent_state.latent_plan, costs)
    for project_state in found[2]:
        _check_planned(project_state.project_count)
        leaves = _fitting(params, project_state.project_leaves, of_shape=False)
        codes |= _coded(leaves, _assign, project_state.project_plan, None)
    leaves = [codes.get(path, leaf) for path, leaf in leaves_with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _of_kind(state: Any, name: str) -> list[Any]:
    return [value for _, value in optax.tree.get_all_with_path(state, name)]


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


def _coded(leaves: dict[str, jax.Array], code: Any, *of_state: Any) -> dict[str, Codes]:
    for path, leaf in leaves.items():
        check_finite(path, leaf)
    dtypes = tuple(dtype_name(leaf) for leaf in leaves.values())
    return dict(zip(leaves, code(dtypes, list(leaves.values()), *of_state), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _project(
    dtypes: tuple[str, ...], leaves: list[jax.Array], bits: jax.Array, limit: jax.Array
) -> list[Codes]:
    weights = sparsify(floats(leaves), bits, limit)
    return to_codes(weights, quantize_at(weights, bits), dtypes)


@functools.partial(jax.jit, static_argnums=0)
def _assign(
    dtypes: tuple[str, ...], latents: list[jax.Array], plan: Plan, curvature: Curvature
) -> list[Codes]:
    return plan.codes(floats(latents), dtypes, curvature)
