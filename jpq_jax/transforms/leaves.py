"""What the transformations share: from trees of updates, params and state to the compressed leaves, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jpq_jax.plan import Where, check_compresses, compressed_leaves, plan_leaves, with_rounded
from jpq_jax.projection.planner import Planner
from jpq_jax.sharding import varying_axes
from jpq_jax.vocabulary import LeafPlan, PyTree, leaves_with_paths


def check_every(name: str, every: Any) -> None:
    """Raises ValueError for what is no whole number of at least 1; arrays, which cannot be checked, are let through."""
    if hasattr(every, "dtype") and not isinstance(every, np.generic):
        return
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise ValueError(f"{name}: got every={every!r}, expected at least 1, a whole number")


def check_strength(name: str, option: str, value: Any) -> None:
    """Raises ValueError for a number that is not finite or below 0, and for what is neither number nor schedule; arrays are let through."""
    if callable(value) or (hasattr(value, "dtype") and not isinstance(value, np.generic)):
        return
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 <= float(value) < math.inf:
        raise ValueError(
            f"{name}: got {option}={value!r}, expected a finite number of at least 0, or a schedule"
        )


def value_at(number: Any, count: jax.Array) -> Any:
    """A hyperparameter at an update, be it a schedule or not."""
    return number(count) if callable(number) else number


def compressing_plan(
    params: PyTree, where: Where, planner: Planner | None = None
) -> list[LeafPlan]:
    """What the planner takes for compressed.

    Raises ValueError if nothing is compressed. An empty tree is let through: optax.tree.map_params asks with one.
    """
    plan = plan_leaves(params, where)
    if plan:
        check_compresses(plan)
    if planner is not None and not isinstance(planner, Planner):
        raise ValueError(f"got planner={planner!r}, expected one, such as `joint(budget)` gives")
    return with_rounded(plan) if planner is not None and planner.rounds else plan


def planned_leaves(plan: Sequence[LeafPlan]) -> list[LeafPlan]:
    """Of the leaves that are compressed."""
    return [p for p in plan if p.compress]


def where_compressed(
    make: Callable[[Any], Any], params: PyTree, plan: Sequence[LeafPlan]
) -> PyTree:
    """A tree like the params, `make(leaf)` where a leaf is compressed and `optax.MaskedNode` elsewhere."""
    leaves, treedef = jax.tree.flatten(params)
    filled = [
        make(leaf) if p.compress else optax.MaskedNode()
        for leaf, p in zip(leaves, plan, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)


def float_zeros(leaf: Any) -> jax.Array:
    """In float32 whatever the leaf's dtype, as for what many small numbers are added to; it lies as the leaf does."""
    return jnp.zeros_like(leaf, dtype=jnp.float32)


def refilled(tree: PyTree, leaves: Sequence[jax.Array]) -> PyTree:
    """The tree with other arrays, each in the dtype of the one it replaces."""
    old, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        treedef, [new.astype(leaf.dtype) for new, leaf in zip(leaves, old, strict=True)]
    )


def wider_dtype(a: Any, b: Any) -> Any:
    """Of two arrays', the first where both are as wide."""
    return a.dtype if a.dtype.itemsize >= b.dtype.itemsize else b.dtype


def floats(tree: PyTree) -> list[jax.Array]:
    """The leaves in float32."""
    return [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]


def check_update(name: str, updates: PyTree, params: PyTree | None) -> None:
    """Raises ValueError, in the transformation's name, without params or if the updates do not fit them."""
    if params is None:
        raise ValueError(f"{name}: update needs the params; call update(updates, state, params)")
    got, expected = (jax.tree.map(jnp.shape, jax.tree.leaves(t)) for t in (updates, params))
    if got != expected:
        paths = [path for path, _ in leaves_with_paths(params)]
        raise ValueError(f"{name}: got updates of shapes {got}, expected {expected} for {paths}")


def check_whole(name: str, plan: Sequence[LeafPlan], *trees: PyTree) -> None:
    """Raises ValueError, naming the leaf, if a compressed leaf of the params or updates differs between the devices of
    `shard_map`: each would decide by itself, and spend a budget of its own.
    """
    paths = [p.path for p in planned_leaves(plan)]
    for tree in trees:
        for path, leaf in zip(paths, compressed_leaves(tree, plan), strict=True):
            axes = sorted(varying_axes(leaf))
            if axes:
                raise ValueError(
                    f"{name}: leaf {path!r}: got params or updates that vary over the manual axes {axes}, expected "
                    "the same on all devices: average the gradients by `jax.lax.pmean`. A leaf that is sharded is "
                    "compressed under `jax.jit`, outside `shard_map`"
                )


def differences(
    new: Sequence[jax.Array], old: Sequence[jax.Array], steps: Sequence[jax.Array]
) -> list[jax.Array]:
    """Updates from old to new. A pruned weight becomes exactly 0, since p + (0 - p) is exact in p's own dtype."""

    def difference(n: jax.Array, o: jax.Array, step: jax.Array) -> jax.Array:
        wider = wider_dtype(o, step)
        exact = wider if wider.itemsize > 4 else jnp.float32
        return (n.astype(exact) - o.astype(exact)).astype(wider)

    return [difference(*parts) for parts in zip(new, old, steps, strict=True)]
