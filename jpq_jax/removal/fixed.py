"""Arrays that depend on neither a model's weights nor its inputs: masks, positions, frequencies, indices.

They are computed as they were, and indices are taken of them where they meet others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from jpq_jax.removal.program import bind, shape_of

Value = Callable[[Any], "NDArray[Any] | None"]  # of a variable or literal, where it is known


class Fixed:
    """Those of a program."""

    def __init__(self, program: ClosedJaxpr) -> None:
        jaxpr = program.jaxpr
        self._values: dict[Var, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
        self._made_by: dict[Var, JaxprEqn] = {}
        for eqn in jaxpr.eqns:
            if not eqn.effects and all(atom in self for atom in eqn.invars):
                self._made_by.update(dict.fromkeys(eqn.outvars, eqn))

    def __contains__(self, atom: Any) -> bool:
        return isinstance(atom, Literal) or atom in self._values or atom in self._made_by

    def makes(self, eqn: JaxprEqn) -> bool:
        """Whether an equation's outputs are such."""
        return bool(eqn.outvars) and eqn.outvars[0] in self._made_by

    def value(self, atom: Any) -> NDArray[Any] | None:
        """Of one of them; None for others."""
        if atom not in self:
            return None
        with jax.ensure_compile_time_eval():  # the caller may be traced
            return np.asarray(self._value(atom))

    def _value(self, atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        if atom not in self._values:
            eqn = self._made_by[atom]
            operands = [jnp.asarray(self._value(operand)) for operand in eqn.invars]
            self._values.update(zip(eqn.outvars, bind(eqn, operands), strict=True))
        return self._values[atom]


class Taken(NamedTuple):
    """Indices of an axis that an equation takes, in their order.

    Attributes:
      axis: of its operand.
      to: the same axis of its result.
      positions: the indices.
    """

    axis: int
    to: int
    positions: NDArray[np.int64]


def taken_by(eqn: JaxprEqn, value: Value) -> list[Taken] | None:
    """What of each axis, if an equation does nothing but take indices that are known."""
    rule = _TAKES.get(eqn.primitive.name)
    return rule(eqn, value) if rule else None


def _sliced(eqn: JaxprEqn, value: Value) -> list[Taken]:
    del value
    p = eqn.params
    strides = p["strides"] or [1] * len(p["start_indices"])
    ranges = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return [Taken(axis, axis, np.arange(*each)) for axis, each in enumerate(ranges)]


def _sliced_at(eqn: JaxprEqn, value: Value) -> list[Taken] | None:
    """By starts, which are moved until the slice fits."""
    shape, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    taken = []
    for axis, (size, length, atom) in enumerate(zip(sizes, shape, eqn.invars[1:], strict=True)):
        start = value(atom)
        if start is None:
            return None
        first = min(max(int(start), 0), length - size)
        taken.append(Taken(axis, axis, np.arange(first, first + size)))
    return taken


def _gathered(eqn: JaxprEqn, value: Value) -> list[Taken] | None:
    """Along one axis, all others whole."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, indices = shape_of(eqn.invars[0]), shape_of(eqn.invars[1])
    if numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
        return None
    [axis] = numbers.start_index_map
    whole = tuple(1 if i == axis else size for i, size in enumerate(shape))
    if numbers.collapsed_slice_dims != (axis,) or tuple(sizes) != whole or len(indices) != 2:
        return None
    found = value(eqn.invars[1])
    if found is None or not math.prod(indices) or found.min() < 0 or found.max() >= shape[axis]:
        return None
    others = [i for i in range(len(shape)) if i != axis]
    to = dict(zip(others, numbers.offset_dims, strict=True))
    to[axis] = next(i for i in range(len(shape)) if i not in numbers.offset_dims)
    positions = {axis: found[:, 0].astype(np.int64)}
    return [Taken(i, to[i], positions.get(i, np.arange(n))) for i, n in enumerate(shape)]


_TAKES: dict[str, Callable[[JaxprEqn, Value], list[Taken] | None]] = {
    "slice": _sliced,
    "dynamic_slice": _sliced_at,
    "gather": _gathered,
}
