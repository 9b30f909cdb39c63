"""From trained params and the optimizer's state to exact codes within the budget."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jpq_jax.plan import check_finite
from jpq_jax.projection.published import quantize_at, sparsify, to_codes
from jpq_jax.transforms.admm import AdmmState
from jpq_jax.vocabulary import Codes, PyTree, dtype_name, leaves_with_paths


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
    codes: dict[str, Codes] = {}
    for admm_state in found:
        codes |= _codes(params, admm_state)
    leaves = [codes.get(path, leaf) for path, leaf in leaves_with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _codes(params: PyTree, state: AdmmState) -> dict[str, Codes]:
    """By path, since a state's containers may differ from the params' (Flax NNX has variables of its own there)."""
    targets = _targets(state)
    found = dict(leaves_with_paths(params))
    leaves = []
    for path, target in targets.items():
        leaf = found.get(path)
        if leaf is None:
            raise ValueError(
                f"finalize: the state has a leaf {path!r}, the params have {list(found)}"
            )
        if leaf.shape != target.shape:
            raise ValueError(f"leaf {path!r}: got shape {leaf.shape}, the state has {target.shape}")
        check_finite(path, leaf)
        leaves.append(leaf)
    dtypes = tuple(dtype_name(leaf) for leaf in leaves)
    codes = _project(leaves, state.leaf_bits, state.bit_budget, dtypes)
    return dict(zip(targets, codes, strict=True))


def _targets(state: AdmmState) -> dict[str, jax.Array]:
    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    named = leaves_with_paths(state.target, is_leaf=is_masked)
    return {path: target for path, target in named if not is_masked(target)}


@functools.partial(jax.jit, static_argnums=3)
def _project(
    leaves: list[jax.Array], bits: jax.Array, limit: jax.Array, dtypes: tuple[str, ...]
) -> list[Codes]:
    weights = sparsify([leaf.astype(jnp.float32) for leaf in leaves], bits, limit)
    return to_codes(weights, quantize_at(weights, bits), dtypes)
