"""A model's function as a flat list of equations: what JAX traces, with the calls of jitted and other functions laid open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

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
        "cbrt",
        "ceil",
        "clamp",
        "convert_element_type",
        "copy",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "pow",
        "real",
        "reduce_precision",
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
    ]
)
"""Primitives that compute each element of their result from the same element of their operands."""

# Calls that compute what their inner program does. By the name of the field that holds it.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


def flat_program(function: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, Any]:
    """The program of a function of pytrees, and the structure of what it returns.

    args: arrays or their shapes.
    """
    args = jax.tree.map(_shape_of, args)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

    def opened(*leaves: jax.Array) -> list[Any]:
        return _run(traced.jaxpr, traced.consts, leaves)

    flat = jax.make_jaxpr(opened)(*jax.tree.leaves(args))
    return flat, jax.tree.structure(shapes)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


def shape_of(var: Any) -> tuple[int, ...]:
    """Of a program's array."""
    return tuple(var.aval.shape)


def dtype_of(var: Any) -> Any:
    return var.aval.dtype


def bind(eqn: JaxprEqn, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """What an equation computes, with some of its parameters changed."""
    found = eqn.primitive.bind(*operands, **(eqn.params | changed))
    return list(found) if eqn.primitive.multiple_results else [found]


def _run(jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    env: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        values = [_value(env, atom) for atom in eqn.invars]
        name, platforms = eqn.primitive.name, eqn.params.get("branches_platforms")
        if name in _CALLS:
            found = _inside(eqn.params[_CALLS[name]], values)
        elif platforms:  # of `lax.platform_dependent`
            found = _inside(eqn.params["branches"][_plainest(platforms)], values[1:])
        else:
            found = bind(eqn, _of_one_shape(eqn, values))
        env.update(zip(eqn.outvars, found, strict=True))
    return [_value(env, atom) for atom in jaxpr.outvars]


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
        if jnp.ndim(value) and jnp.shape(value) != shape
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
