"""From trained params and the optimizer's state to exact codes within the budget."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jpq_jax.plan import check_finite, compressed_leaves
from jpq_jax.projection.published import quantize_at, sparsify, to_codes
from jpq_jax.transforms.admm import AdmmState
from jpq_jax.vocabulary import Codes, LeafPlan, PyTree, leaves_with_paths


def finalize(params: PyTree, state: Any) -> PyTree:
    """Codes of the params under the budget and bit-widths that the optimizer's state holds.

    For each `AdmmState` in `state`: its leaves are sparsified at its bit-widths (0-1 knapsack, exact in the
    budget) and quantized by k-means at the same bit-widths, as the published evaluation does. A value that no
    weight takes is dropped, so the result may use less than the budget, and never uses more.

    Args:
      params: the trained params.
      state: the optimizer's state, whatever it is wrapped in.

    Returns:
      The compressed tree: `params` with `Codes` in place of the compressed leaves.

    Raises:
      ValueError: no `AdmmState` in `state`, one that does not fit the params, or weights that are not finite.
    """
    found = [value for _, value in optax.tree.get_all_with_path(state, "AdmmState")]
    if not found:
        raise ValueError(
            "finalize: found no AdmmState in the optimizer's state, expected one of admm"
        )
    leaves, treedef = jax.tree.flatten(params)
    for admm_state in found:
        plan = _plan_of(params, admm_state)
        check_finite(params, plan)
        codes = iter(_codes(compressed_leaves(params, plan), admm_state))
        leaves = [next(codes) if p.compress else old for old, p in zip(leaves, plan, strict=True)]
    return jax.tree.unflatten(treedef, leaves)


def _codes(leaves: list[jax.Array], state: AdmmState) -> list[Codes]:
    dtypes = tuple(jnp.dtype(leaf.dtype).name for leaf in leaves)
    return _project(leaves, state.leaf_bits, state.bit_budget, dtypes)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _plan_of(params: PyTree, state: AdmmState) -> list[LeafPlan]:
    """What the state's own tree says: a masked node covers a leaf, or a subtree that another mask took away."""

    def spread(target: Any, part: PyTree) -> PyTree:
        return jax.tree.map(lambda _: target, part)

    try:
        targets = jax.tree.map(spread, state.target, params, is_leaf=_is_masked)
    except ValueError as error:
        raise ValueError(f"finalize: the state does not fit the params: {error}") from error
    pairs = zip(
        jax.tree.leaves(targets, is_leaf=_is_masked), leaves_with_paths(params), strict=True
    )
    plan = []
    for target, (path, leaf) in pairs:
        compress = not _is_masked(target)
        if compress and leaf.shape != target.shape:
            raise ValueError(f"leaf {path!r}: got shape {leaf.shape}, the state has {target.shape}")
        plan.append(LeafPlan(path, compress, "compressed by admm"))
    return plan


@functools.partial(jax.jit, static_argnums=3)
def _project(
    leaves: list[jax.Array], bits: jax.Array, limit: jax.Array, dtypes: tuple[str, ...]
) -> list[Codes]:
    weights = sparsify([leaf.astype(jnp.float32) for leaf in leaves], bits, limit)
    return to_codes(weights, quantize_at(weights, bits), dtypes)
