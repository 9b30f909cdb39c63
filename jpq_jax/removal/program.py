"""A model's function as a flat list of equations: what JAX traces, with the calls of jitted and other functions laid open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

_REDUCTIONS = ("and", "max", "min", "or", "prod", "sum", "xor")
_CUMULATIVE = ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum")

ELEMENTWISE = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bessel_i0e",
        "bessel_i1e",
        "bitcast_convert_type",
        "cbrt",
        "ceil",
        "clamp",
        "clz",
        "complex",
        "conj",
        "convert_element_type",
        "copy",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "eq_to",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "igamma",
        "igamma_grad_a",
        "igammac",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "le_to",
        "lgamma",
        "log",
        "log1p",
        "log2",
        "logistic",
        "lt",
        "lt_to",
        "max",
        "min",
        "mul",
        "mulhi",
        "ne",
        "neg",
        "nextafter",
        "not",
        "one_minus_square",
        "or",
        "polygamma",
        "polynomial",
        "population_count",
        "pow",
        "real",
        "reduce_precision",
        "regularized_incomplete_beta",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
        "zeta",
    ]
)
"""Primitives that compute each element of their result from the same element of their operands, of every JAX from 0.10."""

IDENTITIES = frozenset(["name", "optimization_barrier", "pvary", "xla_metadata_value"])
"""Primitives that pass each operand on as it is: for a policy of rematerialization, or for the compiler."""

PLACEMENTS = frozenset(["device_put", "sharding_constraint"])
"""Those that do so, and say on which devices."""

OVER_AXES: dict[str, Callable[[JaxprEqn], Sequence[int]]] = {
    **{
        name: lambda eqn: eqn.params["axes"]
        for name in ("argmax", "argmin", *(f"reduce_{of}" for of in _REDUCTIONS))
    },
    **{name: lambda eqn: [eqn.params["axis"]] for name in ("top_k", *_CUMULATIVE)},
    "reduce": lambda eqn: eqn.params["dimensions"],
    "sort": lambda eqn: [eqn.params["dimension"]],
    "approx_top_k": lambda eqn: [eqn.params["reduction_dimension"]],
    "fft": lambda eqn: range(_rank(eqn) - len(eqn.params["fft_lengths"]), _rank(eqn)),
}
"""Primitives that go over some axes, and do the same for each index of the others: over which they go."""

# Calls that compute what their inner program does. By the field that holds it, in one version of JAX or another.
_CALLS = frozenset(
    [
        "call",
        "checkpoint",
        "closed_call",
        "composite",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vmap_call",
        "jit",
        "linear_call",
        "remat2",
    ]
)
_INNER = ("jaxpr", "call_jaxpr", "call", "callee")


def flat_program(function: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, Any]:
    """The program of a function of pytrees, and the structure of what it returns.

    args: arrays or their shapes.
    """
    args = jax.tree.map(_shape_of, args)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

    def opened(*leaves: jax.Array) -> list[Any]:
        return _run(traced.jaxpr, traced.consts, leaves)

    flat = jax.make_jaxpr(opened)(*jax.tree.leaves(args))
    return flat.replace(jaxpr=_used(flat.jaxpr)), jax.tree.structure(shapes)


def _used(jaxpr: Jaxpr) -> Jaxpr:
    """Without equations of which nothing comes, such as the value where only its gradient is asked for."""
    needed = {atom for atom in jaxpr.outvars if isinstance(atom, Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or needed.intersection(eqn.outvars):
            needed.update(atom for atom in eqn.invars if isinstance(atom, Var))
            kept.append(eqn)
    return jaxpr.replace(eqns=kept[::-1])


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


def shape_of(var: Any) -> tuple[int, ...]:
    """Of a program's array."""
    return tuple(var.aval.shape)


def dtype_of(var: Any) -> Any:
    return var.aval.dtype


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Of operands that are scalars or have the result's shape: a cast of bits to another width has not."""
    if eqn.primitive.name not in ELEMENTWISE:
        return False
    return {shape_of(atom) for atom in eqn.invars} <= {(), shape_of(eqn.outvars[0])}


def _rank(eqn: JaxprEqn) -> int:
    """Of its first operand."""
    return len(shape_of(eqn.invars[0]))


def bind(eqn: JaxprEqn, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """What an equation computes, with some of its parameters changed."""
    found = eqn.primitive.bind(*operands, **(eqn.params | changed))
    return list(found) if eqn.primitive.multiple_results else [found]


def _run(jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    env: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        values = [_value(env, atom) for atom in eqn.invars]
        env.update(zip(eqn.outvars, _opened(eqn, values), strict=True))
    return [_value(env, atom) for atom in jaxpr.outvars]


def _opened(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """What an equation computes, by equations that the rules know, where there are such."""
    name, p = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _inside(next(p[field] for field in _INNER if field in p), values)
    if name == "call_hi_primitive" and not eqn.effects:
        whole = p["_prim"]
        return jax.tree.leaves(whole.expand(*jax.tree.unflatten(whole.in_tree, values)))
    if name == "cond" and (branch := _branch(eqn, values[0])) is not None:
        return _inside(p["branches"][branch], values[1:])
    if name == "scan" and _is_unrolled(p):
        return _unrolled(eqn, values)
    if name in _REWRITTEN:
        return _REWRITTEN[name](values, p)
    return bind(eqn, _of_one_shape(eqn, values))


def _branch(eqn: JaxprEqn, index: Any) -> int | None:
    """Which is taken, where that is known: of `lax.platform_dependent`, or of a constant."""
    branches, platforms = eqn.params["branches"], eqn.params.get("branches_platforms")
    if platforms:
        return _plainest(platforms)
    if isinstance(index, Tracer):
        return None
    return min(max(int(index), 0), len(branches) - 1)


def _is_unrolled(params: dict[str, Any]) -> bool:
    """Whether a scan is a loop in name only."""
    return params["length"] > 0 and (params["unroll"] or params["length"]) >= params["length"]


def _unrolled(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """A scan, step by step. Which of its operands and results are stacked, versions of JAX write differently; their rank tells."""
    p, inner = eqn.params, eqn.params["jaxpr"]
    inside = [len(aval.shape) for aval in (*inner.in_avals, *inner.out_avals)]
    outside = [len(shape_of(var)) for var in (*eqn.invars, *eqn.outvars)]
    is_stacked = np.not_equal(inside, outside)
    first = len(values) - int(is_stacked[: len(values)].sum())
    carries = len(eqn.outvars) - int(is_stacked[len(values) :].sum())
    consts, carry = list(values[: first - carries]), list(values[first - carries : first])
    steps = range(p["length"])
    found: dict[int, list[Any]] = {}
    for step in reversed(steps) if p["reverse"] else steps:
        now = [lax.index_in_dim(x, step, keepdims=False) for x in values[first:]]
        results = _inside(inner, [*consts, *carry, *now])
        carry, found[step] = results[:carries], results[carries:]
    of_steps = zip(*(found[step] for step in steps), strict=True)
    return [*carry, *(_stacked(parts, {"axis": 0})[0] for parts in of_steps)]


def _stacked(values: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    axis = params["axis"]
    return [lax.concatenate([lax.expand_dims(x, [axis]) for x in values], axis)]


def _unstacked(values: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    [whole], axis = values, params["axis"]
    return [lax.index_in_dim(whole, i, axis, keepdims=False) for i in range(whole.shape[axis])]


def _tiled(values: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    [tile], repetitions = values, params["reps"]
    shape = [size for pair in zip(repetitions, tile.shape, strict=True) for size in pair]
    wide = lax.broadcast_in_dim(tile, shape, range(1, len(shape), 2))
    return [lax.reshape(wide, [n * size for n, size in zip(repetitions, tile.shape, strict=True)])]


# By primitives that say the same and have rules.
_REWRITTEN: dict[str, Callable[[Sequence[Any], dict[str, Any]], list[Any]]] = {
    "stack": _stacked,
    "unstack": _unstacked,
    "tile": _tiled,
}


def _inside(inner: ClosedJaxpr | Jaxpr, values: Sequence[Any]) -> list[Any]:
    if isinstance(inner, ClosedJaxpr):
        return _run(inner.jaxpr, inner.consts, values)
    return _run(inner, (), values)


def _of_one_shape(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Operands of elementwise equations as their result's shape: JAX lets axes of length 1 stand for longer ones there."""
    if eqn.primitive.name not in ELEMENTWISE:
        return list(values)
    shape = shape_of(eqn.outvars[0])
    return [
        lax.broadcast_in_dim(value, shape, range(len(shape)))
        if jnp.ndim(value) == len(shape) > 0 and jnp.shape(value) != shape
        else value
        for value in values
    ]


def _value(env: dict[Var, Any], atom: Var | Literal) -> Any:
    return atom.val if isinstance(atom, Literal) else env[atom]


def _plainest(platforms: Sequence[tuple[str, ...] | None]) -> int:
    """The default branch, None, if there is one, and else that for the platform that there is: they all compute the same."""
    if None in platforms:
        return platforms.index(None)
    return next(i for i, names in enumerate(platforms) if names and jax.default_backend() in names)
