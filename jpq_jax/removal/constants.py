"""What of each array is the same whatever the model's input, by abstract interpretation of a program.

A channel whose weights are all pruned gives its bias everywhere, ReLU of that after it, and so on. Values are found with the weights
as they are; an axis along which they do not change is kept as one index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from jpq_jax.removal.fixed import taken_by
from jpq_jax.removal.known import Known, given, nothing, unknown
from jpq_jax.removal.products import of_convolution, of_dot
from jpq_jax.removal.program import (
    IDENTITIES,
    OVER_AXES,
    PLACEMENTS,
    bind,
    dtype_of,
    is_elementwise,
    shape_of,
)
from jpq_jax.removal.reshapes import reshape_groups


def constants(program: ClosedJaxpr, params: Sequence[Any]) -> dict[Var, Known]:
    """Of every array, what is known of it, given the first operands."""
    jaxpr = program.jaxpr
    known = {var: given(value) for var, value in zip(jaxpr.invars, params, strict=False)}
    known |= {var: unknown(shape_of(var)) for var in jaxpr.invars[len(params) :]}
    known |= {var: given(v) for var, v in zip(jaxpr.constvars, program.consts, strict=True)}
    # The caller may be traced; and what a model makes of numbers is its own affair.
    with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
        for eqn in jaxpr.eqns:
            operands = [of(known, atom) for atom in eqn.invars]
            found = _outputs(eqn, operands)
            known.update(zip(eqn.outvars, found, strict=True))
    return known


def of(known: dict[Var, Known], atom: Var | Literal) -> Known:
    return given(atom.val) if isinstance(atom, Literal) else known[atom]


def _outputs(eqn: JaxprEqn, operands: Sequence[Known]) -> list[Known]:
    if not any(math.prod(shape_of(var)) for var in eqn.outvars) and not eqn.effects:
        return [nothing(shape_of(var)) for var in eqn.outvars]
    found = None
    if not eqn.effects and all(map(_is_array, (*eqn.invars, *eqn.outvars))):
        found = _found(eqn, operands)
    return found or [unknown(shape_of(var)) for var in eqn.outvars]


def _is_array(atom: Var | Literal) -> bool:
    """Of numbers, no reference to such, and no key of random ones."""
    if not isinstance(atom.aval, ShapedArray):
        return False
    return not jnp.issubdtype(dtype_of(atom), jax.dtypes.extended)


def _found(eqn: JaxprEqn, operands: Sequence[Known]) -> list[Known] | None:
    name = eqn.primitive.name
    if is_elementwise(eqn):
        return [_elementwise(eqn, operands)]
    if name in IDENTITIES or name in PLACEMENTS:
        return list(operands)
    if name == "split":
        return _split(eqn, operands[0])
    rule = _RULES.get(name)
    found = rule(eqn, operands) if rule else None
    if found is not None:
        return [found.short]
    if operands and all(operand.whole for operand in operands):
        values = [
            jnp.asarray(np.broadcast_to(o.value, o.shape), dtype_of(atom))
            for o, atom in zip(operands, eqn.invars, strict=True)
        ]
        return [given(value) for value in bind(eqn, values)]
    return _over_axes(eqn, operands) if name in OVER_AXES else None


def _elementwise(eqn: JaxprEqn, operands: Sequence[Known]) -> Known:
    shape = shape_of(eqn.outvars[0])
    each, wide = _side_by_side(operands, len(shape))
    is_known = np.logical_and.reduce([o.is_known for o in wide])
    value = np.broadcast_to(_values(eqn, wide)[0], each)
    if eqn.primitive.name == "mul":
        zero = (wide[0].is_zero & ~wide[1].is_broken) | (wide[1].is_zero & ~wide[0].is_broken)
        is_known, value = is_known | zero, np.where(zero, 0, value)
    if eqn.primitive.name == "select_n":  # one that is not taken need not be known
        which, *cases = wide
        taken = [case.is_known & (which.value == i) for i, case in enumerate(cases)]
        is_known = is_known | (which.is_known & np.logical_or.reduce(taken))
    return Known(shape, is_known, value)


def _side_by_side(operands: Sequence[Known], rank: int) -> tuple[tuple[int, ...], list[Known]]:
    """Operands of one shape or none as one short shape."""
    each = np.broadcast_shapes(*(o.value.shape for o in operands))
    if len(each) < rank:
        each = (1,) * rank
    wide = [
        o.to(each) if o.shape else o._replace(is_known=np.broadcast_to(o.is_known, each))
        for o in operands
    ]
    return each, wide


def _values(eqn: JaxprEqn, operands: Sequence[Known]) -> list[NDArray[Any]]:
    """What an equation makes of values, be they known or not."""
    pairs = zip(operands, eqn.invars, strict=True)
    return [np.asarray(x) for x in bind(eqn, [jnp.asarray(o.value, dtype_of(a)) for o, a in pairs])]


def _over_axes(eqn: JaxprEqn, operands: Sequence[Known]) -> list[Known] | None:
    """Known where all that it goes over is."""
    axes = tuple(OVER_AXES[eqn.primitive.name](eqn))
    if not all(o.is_known.any() for o in operands):
        return None
    full = [o.full(axes) if o.shape else o for o in operands]
    _, wide = _side_by_side(full, len(operands[0].shape))
    is_known = np.logical_and.reduce([o.is_known for o in wide]).all(axis=axes, keepdims=True)
    found = []
    for value, var in zip(_values(eqn, wide), eqn.outvars, strict=True):
        where = is_known if value.ndim == is_known.ndim else is_known.squeeze(axes)
        found.append(Known(shape_of(var), np.broadcast_to(where, value.shape), value).short)
    return found


def _broadcast(eqn: JaxprEqn, operands: Sequence[Known]) -> Known:
    shape, [operand, *_] = tuple(eqn.params["shape"]), operands
    short = [1] * len(shape)
    for size, to in zip(operand.value.shape, eqn.params["broadcast_dimensions"], strict=True):
        short[to] = size
    return Known(shape, operand.is_known.reshape(short), operand.value.reshape(short))


def _reshape(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    [operand, *_], shape = operands, tuple(eqn.params["new_sizes"])
    if eqn.params["dimensions"] is not None or not math.prod(shape):
        return None
    short: list[int] = []
    for before, after in reshape_groups(operand.shape, shape):
        if any(operand.value.shape[axis] > 1 for axis in before):
            operand = operand.full(before)
            short += [shape[axis] for axis in after]
        else:
            short += [1] * len(after)
    return Known(shape, operand.is_known.reshape(short), operand.value.reshape(short))


def _moved(move: Callable[[NDArray[Any], Any], NDArray[Any]]) -> Callable[..., Known]:
    """A rule for what only moves axes about."""

    def rule(eqn: JaxprEqn, operands: Sequence[Known]) -> Known:
        [operand] = operands
        shape = shape_of(eqn.outvars[0])
        return Known(shape, move(operand.is_known, eqn.params), move(operand.value, eqn.params))

    return rule


def _take(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    def value(atom: Any) -> NDArray[Any] | None:
        one = next(o for o, var in zip(operands, eqn.invars, strict=True) if var is atom)
        return np.broadcast_to(one.value, one.shape) if one.whole else None

    taken = taken_by(eqn, value)
    if taken is None:
        return _gathered(eqn, operands) if eqn.primitive.name == "gather" else None
    [operand, *_], order = operands, [one.axis for one in sorted(taken, key=lambda one: one.to)]
    known = [operand.is_known, operand.value]
    for axis, _, positions in taken:
        if operand.value.shape[axis] > 1:
            known = [x.take(positions, axis) for x in known]
    return Known(shape_of(eqn.outvars[0]), *(np.transpose(x, order) for x in known))


def _gathered(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    table, indices = operands
    if not indices.whole or not table.is_known.any():
        return None
    full = [o.full(range(len(o.shape))) for o in operands]
    found, place = jnp.asarray(full[0].is_known, jnp.int32), jnp.asarray(full[1].value)
    known = bind(eqn, [found, place], fill_value=0)[0]
    return Known(shape_of(eqn.outvars[0]), np.asarray(known == 1), _values(eqn, full)[0])


def _split(eqn: JaxprEqn, operand: Known) -> list[Known]:
    axis, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"])[:-1]
    whole = operand.full([axis])
    parts = zip(*(np.split(x, ends, axis) for x in (whole.is_known, whole.value)), strict=True)
    return [Known(shape_of(var), *part) for var, part in zip(eqn.outvars, parts, strict=True)]


def _concatenate(eqn: JaxprEqn, operands: Sequence[Known]) -> Known:
    axis = eqn.params["dimension"]
    parts = [operand.full([axis]) for operand in operands]
    rest = np.broadcast_shapes(*(np.delete(part.value.shape, axis) for part in parts))
    parts = [part.to([*rest[:axis], part.shape[axis], *rest[axis:]]) for part in parts]
    is_known = np.concatenate([part.is_known for part in parts], axis)
    value = np.concatenate([part.value for part in parts], axis)
    return Known(shape_of(eqn.outvars[0]), is_known, value)


def _pad(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    operand, filling = operands
    config = eqn.params["padding_config"]
    if not filling.whole:
        return None
    operand = operand.full([i for i, entry in enumerate(config) if entry != (0, 0, 0)])
    value = jnp.asarray(operand.value, dtype_of(eqn.invars[0]))
    return Known(
        shape_of(eqn.outvars[0]),
        np.asarray(lax.pad(operand.is_known, True, config)),
        np.asarray(lax.pad(value, jnp.asarray(filling.value, value.dtype), config)),
    )


def _iota(eqn: JaxprEqn, operands: Sequence[Known]) -> Known:
    del operands
    shape, along = tuple(eqn.params["shape"]), eqn.params["dimension"]
    short = [size if axis == along else 1 for axis, size in enumerate(shape)]
    value = np.arange(shape[along]).astype(eqn.params["dtype"]).reshape(short)
    return Known(shape, np.ones(short, bool), value)


def _update_slice(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    del eqn
    whole, update, *starts = operands
    if not all(start.whole for start in starts) or not math.prod(update.shape):
        return None
    parts = [i for i, size in enumerate(update.shape) if size != whole.shape[i]]
    whole, update = whole.full(parts), update.full(parts)
    each = np.broadcast_shapes(*(np.delete(o.value.shape, parts) for o in (whole, update)))
    there = []
    for axis, size in enumerate(update.shape):
        first = min(max(int(starts[axis].value), 0), whole.shape[axis] - size)
        there.append(slice(first, first + size) if axis in parts else slice(None))
    sizes = iter(each)
    short = [n if i in parts else next(sizes) for i, n in enumerate(whole.shape)]
    known, value = (np.array(x) for x in (whole.to(short).is_known, whole.to(short).value))
    known[tuple(there)], value[tuple(there)] = update.is_known, update.value
    return Known(whole.shape, known, value)


def _scatter(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    """Known where the table is, and all that is put there."""
    table, indices, updates = operands
    if not indices.whole or not (table.is_known.any() and updates.is_known.any()):
        return None
    table, indices, updates = (o.full(range(len(o.shape))) for o in operands)
    unknown = [jnp.asarray(~o.is_known, jnp.int32) for o in (table, updates)]
    place, numbers = jnp.asarray(indices.value), eqn.params["dimension_numbers"]
    hit = lax.scatter_add(unknown[0], place, unknown[1], numbers, mode=eqn.params["mode"])
    [value] = _values(eqn, [table, indices, updates])
    return Known(table.shape, np.asarray(hit == 0), value)


def _reduce_sum(eqn: JaxprEqn, operands: Sequence[Known]) -> Known:
    [operand], axes = operands, tuple(eqn.params["axes"])
    short = math.prod(operand.shape[i] for i in axes if operand.value.shape[i] == 1)
    value = operand.value.sum(axis=axes) * short
    return Known(shape_of(eqn.outvars[0]), np.asarray(operand.is_known.all(axis=axes)), value)


def _reduce_max(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    [operand], axes = operands, tuple(eqn.params["axes"])
    if not math.prod(operand.shape):
        return None
    value = operand.value.max(axis=axes)
    return Known(shape_of(eqn.outvars[0]), np.asarray(operand.is_known.all(axis=axes)), value)


def _pool(eqn: JaxprEqn, operands: Sequence[Known]) -> Known | None:
    """Of a window over places that are all alike; the largest is that of each, the sum as often as there are."""
    [operand], p = operands, eqn.params
    pooled = [
        i
        for i, size in enumerate(p["window_dimensions"])
        if (size, p["window_strides"][i], p["base_dilation"][i]) != (1, 1, 1)
        or p["padding"][i] != (0, 0)
    ]
    if any(operand.value.shape[i] > 1 for i in pooled):
        return None
    is_known, value = operand.is_known, operand.value
    if eqn.primitive.name == "reduce_window_sum":
        value = value * math.prod(p["window_dimensions"])
        if any(pad != (0, 0) for pad in p["padding"]) or any(d > 1 for d in p["base_dilation"]):
            is_known = operand.is_zero
    return Known(shape_of(eqn.outvars[0]), is_known, value)


_RULES: dict[str, Callable[[JaxprEqn, Sequence[Known]], Known | None]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _moved(lambda x, p: np.transpose(x, p["permutation"])),
    "squeeze": _moved(lambda x, p: np.squeeze(x, tuple(p["dimensions"]))),
    "rev": _moved(lambda x, p: np.flip(x, tuple(p["dimensions"]))),
    "slice": _take,
    "dynamic_slice": _take,
    "gather": _take,
    "concatenate": _concatenate,
    "pad": _pad,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "reduce_window_max": _pool,
    "reduce_window_min": _pool,
    "iota": _iota,
    "dynamic_update_slice": _update_slice,
    **{f"scatter{how}": _scatter for how in ("", "-add", "-sub", "-mul", "-min", "-max")},
    "reduce_window_sum": _pool,
    "dot_general": of_dot,
    "conv_general_dilated": of_convolution,
}
