"""Which leaves are compressed, which only stored, and why: the default rule and how to override it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import core as jax_core

from jpq_jax.granularity import check_fits
from jpq_jax.names import module_and_kind
from jpq_jax.vocabulary import (
    MAX_BITS,
    NOT_IN_JAX,
    Budget,
    LeafPlan,
    PyTree,
    Treatment,
    dtype_name,
    is_codes,
    leaves_with_paths,
)

Where = PyTree | Callable[[str, Any], bool | Treatment] | None
"""A tree of bools (or a prefix of one), a predicate of a leaf's path and the leaf, or None for the default rule.

In place of true a `Treatment` says how a leaf is compressed.
"""

_NOT_KERNELS = frozenset(  # of Flax, PyTorch, Keras and Haiku
    {
        *("bias", "scale", "mean", "var", "running_mean", "running_var"),
        *("beta", "gamma", "moving_mean", "moving_variance", "offset"),
    }
)
_COMPUTED = frozenset(
    name for name in dir(jnp) if name.startswith(("float", "bfloat"))
)  # names of floating dtypes, and of others
_MAX_TOTAL_BITS = 2**32 - 1  # budgets are counted in uint32 on the device
_NOT_BYTES = (
    "got Budget(nbytes=...), expected ratio or bits: the method counts bits x nonzeros, which does not say how "
    "many bytes a file takes"
)


def plan_leaves(params: PyTree, where: Where = None) -> list[LeafPlan]:
    """What is done with each leaf, in JAX's order of the leaves.

    By default kernels are compressed: floating leaves of two or more axes, unless the last part of
    their name says that they are biases, scales or statistics: bias, beta, offset, scale, gamma, mean,
    running_mean, moving_mean, var, running_var, moving_variance. "layer/bias", "layer.bias" and a
    nested bias are the same. All other leaves are stored as they are.

    Args:
      params: arrays, or anything with a shape and a dtype.
      where: overrides the rule. A predicate gets a leaf's path ("block/dense/kernel") and the leaf.

    Raises:
      ValueError: a leaf that is no array; two of one path, such as of {"a/b": x, "a": {"b": y}}; a mask that does not fit the tree
        or selects no leaf; an integer or complex leaf selected; a treatment that a leaf's shape does not allow.
    """
    leaves = leaves_with_paths(params)
    for path, leaf in leaves:
        if is_codes(leaf) or not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(f"leaf {path!r}: got {type(leaf).__name__}, expected an array")
    for path, number in Counter(path for path, _ in leaves).items():
        if number > 1:
            raise ValueError(f"leaf {path!r}: got {number} leaves of this path, expected one")
    if where is None or not leaves:  # optax asks with no leaves what is like the params in a state
        return [_default_plan(path, leaf) for path, leaf in leaves]
    if _is_predicate(where):
        chosen = [_choice(where(path, leaf)) for path, leaf in leaves]
        plan = _chosen(leaves, chosen, "the user's predicate")
    else:
        plan = _chosen(leaves, _broadcast_mask(where, params), "the user's mask")
    if leaves and not any(p.compress for p in plan):
        paths = ", ".join(path for path, _ in leaves[:8])
        raise ValueError(f"the mask or predicate selects no leaf; the leaves are: {paths}")
    return plan


def _is_predicate(where: Where) -> TypeGuard[Callable[[str, Any], bool]]:
    """A function, and not a mask that is a callable pytree, as Equinox models are."""
    return callable(where) and jax.tree_util.all_leaves([where])


def _default_plan(path: str, leaf: Any) -> LeafPlan:
    compress, why = _default_rule(path, leaf)
    is_rounded = not compress and why_not_compressible(leaf.dtype) is None
    return LeafPlan(path, compress, why, rounded=is_rounded)


def _default_rule(path: str, leaf: Any) -> tuple[bool, str]:
    _, name = module_and_kind(path)
    why_not = why_not_compressible(leaf.dtype)
    if why_not is not None:
        return False, why_not
    if len(leaf.shape) < 2:
        return False, "1 axis" if leaf.shape else "a scalar"
    if name in _NOT_KERNELS:
        return False, f"named {name}"
    if math.prod(leaf.shape) == 0:
        return False, "empty"
    return True, "kernel"


def why_not_compressible(dtype: Any) -> str | None:
    """Why weights of a dtype can only be stored; None if they can be pruned and quantized."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return f"{dtype}, a PRNG key"
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"{dtype}, not floating"
    if dtype.name in NOT_IN_JAX or dtype.name not in _COMPUTED:
        return f"{dtype}, with which JAX does not compute"
    if np.zeros((), dtype).astype(np.float32) != 0:
        return f"{dtype}, which has no zero"
    return None


def _choice(value: Any) -> Treatment | bool:
    """What a mask or predicate says of a leaf; never True."""
    if isinstance(value, Treatment):
        return value
    return Treatment() if bool(value) else False


def _chosen(
    leaves: list[tuple[str, Any]], chosen: Sequence[Treatment | bool], by: str
) -> list[LeafPlan]:
    plan = []
    for (path, leaf), treatment in zip(leaves, chosen, strict=True):
        if not isinstance(treatment, Treatment):
            plan.append(LeafPlan(path, False, by))
            continue
        why_not = why_not_compressible(leaf.dtype)
        if why_not is not None:
            raise ValueError(
                f"leaf {path!r}: got dtype {why_not}, expected a floating dtype: {by} selects it"
            )
        if treatment != Treatment() and not math.prod(leaf.shape):
            raise ValueError(
                f"leaf {path!r}: got {treatment} for an empty leaf, expected Treatment()"
            )
        check_fits(path, leaf.shape, treatment.granularity)
        plan.append(LeafPlan(path, True, by, treatment))
    return plan


def _broadcast_mask(mask: PyTree, params: PyTree) -> list[Treatment | bool]:
    try:
        full = jax.tree.map(lambda m, part: jax.tree.map(lambda _: _choice(m), part), mask, params)
    except (ValueError, TypeError) as error:
        paths = [path for path, _ in leaves_with_paths(mask)]
        raise ValueError(f"the mask does not fit the params: it has {paths}; {error}") from error
    return jax.tree.leaves(full)


def treatments_of(plan: Sequence[LeafPlan]) -> tuple[Treatment, ...]:
    """Of the compressed leaves, in order."""
    return tuple(p.treatment for p in plan if p.compress)


def with_rounded(plan: Sequence[LeafPlan]) -> list[LeafPlan]:
    """The plan of a method that takes leaves that may lose digits for compressed ones, too; they stay marked as `rounded`."""
    return [dataclasses.replace(p, compress=p.compress or p.rounded) for p in plan]


def check_published(name: str, plan: Sequence[LeafPlan]) -> None:
    """Raises ValueError, naming the leaf, if one is treated in a way that the published projections do not know."""
    for p in plan:
        if p.compress and p.treatment != Treatment():
            raise ValueError(
                f"{name}: leaf {p.path!r}: got {p.treatment}, expected {Treatment()}: the published "
                "projections know no other; `project` and `joint` do"
            )


class Prepared(NamedTuple):
    """What a projection is called with, checked.

    Attributes:
      plan: of all leaves.
      limit: the budget in bits.
      leaves: the compressed ones.
      dtypes: their names.
    """

    plan: list[LeafPlan]
    limit: int
    leaves: list[Any]
    dtypes: tuple[str, ...]


def prepared(
    params: PyTree, budget: Budget, plan: Where | Sequence[LeafPlan], *, capped: bool = True
) -> Prepared:
    """capped: see `capacity`. Raises ValueError as `plan_leaves` and `capacity` do, and for weights that are not finite."""
    found = as_plan(params, plan)
    limit = capacity(budget, params, found, capped=capped)
    leaves = compressed_leaves(params, found)
    for path, leaf in zip((p.path for p in found if p.compress), leaves, strict=True):
        check_finite(path, leaf)
    return Prepared(found, limit, leaves, tuple(dtype_name(leaf) for leaf in leaves))


def as_plan(params: PyTree, plan: Where | Sequence[LeafPlan]) -> list[LeafPlan]:
    """What `plan_leaves` makes of a rule; or a plan that it made, perhaps changed since, checked against the params."""
    if not (isinstance(plan, Sequence) and plan and isinstance(plan[0], LeafPlan)):
        return plan_leaves(params, plan)
    leaves, got = leaves_with_paths(params), [p.path for p in plan]
    if [path for path, _ in leaves] != got:
        raise ValueError(
            f"got a plan of leaves {got}, expected one of {[path for path, _ in leaves]}"
        )
    by_path = {p.path: p.treatment if p.compress else False for p in plan}
    checked = plan_leaves(params, lambda path, _: by_path[path])
    return [
        dataclasses.replace(new, why=p.why, rounded=p.rounded)
        for new, p in zip(checked, plan, strict=True)
    ]


def compressed_leaves(params: PyTree, plan: Sequence[LeafPlan]) -> list[Any]:
    """The leaves that the plan compresses, in order."""
    leaves = zip(jax.tree.leaves(params), plan, strict=True)
    return [in_native_order(leaf) for leaf, p in leaves if p.compress]


def in_native_order(leaf: Any) -> Any:
    """A leaf as JAX can take it: a compiled function of JAX that has run before reads a foreign byte order as its own."""
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf


def with_compressed(params: PyTree, plan: Sequence[LeafPlan], new: Sequence[Any]) -> PyTree:
    """`params` with the compressed leaves replaced, in order, by `new` (arrays or Codes)."""
    leaves, treedef = jax.tree.flatten(params)
    replacements = iter(new)
    merged = [
        next(replacements) if p.compress else leaf for leaf, p in zip(leaves, plan, strict=True)
    ]
    return jax.tree.unflatten(treedef, merged)


def capacity(
    budget: Budget, params: PyTree, plan: Sequence[LeafPlan], *, capped: bool = True
) -> int:
    """The budget in bits over the compressed leaves.

    Args:
      budget: the budget.
      params: of any containers.
      plan: of their leaves.
      capped: at 8 per weight, more than which the paper metric cannot count; else at 2**32 - 1.

    Raises:
      ValueError: if the tree has nothing to compress or is too large to count in 32 bits, or the budget is
        in bytes.
    """
    check_compresses(plan)
    if budget.nbytes is not None:
        raise ValueError(_why_not_bytes(budget, params, plan))
    return limit_of(budget, compressed_leaves(params, plan), capped=capped)


def check_compresses(plan: Sequence[LeafPlan]) -> None:
    """Raises ValueError, saying why, if nothing is compressed."""
    if not any(p.compress for p in plan):
        why = "; ".join(f"{p.path}: {p.why}" for p in plan[:8]) or "it has no leaves"
        raise ValueError(f"the tree has no leaf to compress: {why}")


def limit_of(budget: Budget, leaves: Sequence[Any], *, capped: bool = True) -> int:
    """The same for the compressed leaves alone."""
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    most = MAX_BITS * size
    if most > _MAX_TOTAL_BITS:
        raise ValueError(
            f"got {size} weights to compress, expected at most {_MAX_TOTAL_BITS // MAX_BITS}"
        )
    if budget.nbytes is not None:
        raise ValueError(_NOT_BYTES)
    bits = 32 * size / budget.ratio if budget.ratio is not None else budget.bits
    most = most if capped else _MAX_TOTAL_BITS
    return int(min(bits, most)) if bits is not None else most


def scheduled(
    limit: jax.Array, schedule: Callable[[Any], Any] | None, count: jax.Array
) -> jax.Array:
    """The limit times the schedule's factor at an update, a factor below 1 counting as 1. [] uint32."""
    if schedule is None:
        return limit
    factor = jnp.asarray(schedule(count) if callable(schedule) else schedule, jnp.float32)
    most = jnp.float32(2**32 - 2**8)  # the largest float32 that fits into uint32
    relaxed = jnp.minimum(limit.astype(jnp.float32) * factor, most).astype(jnp.uint32)
    return jnp.where(factor > 1, jnp.maximum(relaxed, limit), limit)


def _why_not_bytes(budget: Budget, params: PyTree, plan: Sequence[LeafPlan]) -> str:
    stored = {
        p.path: math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        for leaf, p in zip(jax.tree.leaves(params), plan, strict=True)
        if not p.compress
    }
    least = sum(stored.values())
    if budget.nbytes is not None and budget.nbytes < least:
        largest = max(stored, key=lambda path: stored[path])
        return (
            f"got a budget of {budget.nbytes} bytes, expected at least {least}: the leaves that are "
            f"stored as they are take as much, {largest!r} most, with {stored[largest]}"
        )
    return _NOT_BYTES


def _finite_in_float32(leaf: np.ndarray) -> np.ndarray:
    """Float64 may hold more than what is computed with."""
    if leaf.dtype != np.float64:
        return np.isfinite(leaf)
    with np.errstate(over="ignore"):
        return np.isfinite(leaf.astype(np.float32))


def check_finite(path: str, leaf: Any) -> None:
    """Raises ValueError, naming the leaf, if it holds NaN or infinity, or what is that in float32; a traced leaf is let through."""
    if isinstance(leaf, jax_core.Tracer):
        return
    # NumPy needs no program for each shape.
    finite = _finite_in_float32(leaf) if isinstance(leaf, np.ndarray) else jnp.isfinite(leaf)
    wrong = int((~finite).sum())
    if wrong:
        raise ValueError(f"leaf {path!r}: got {wrong} NaN or infinite weights, expected none")
