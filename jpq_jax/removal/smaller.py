"""A program without its dead indices: the same equations, in which lengths that are written down are the smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from jpq_jax.removal.atoms import Axes
from jpq_jax.removal.fixed import Fixed, Taken, taken_by
from jpq_jax.removal.labels import Labelled
from jpq_jax.removal.program import bind, dtype_of

Keeps = tuple[NDArray[np.bool_], ...]  # of each axis, which indices stay


def run_smaller(
    program: ClosedJaxpr, labelled: Labelled, is_dead: NDArray[np.bool_], operands: Sequence[Any]
) -> list[Any]:
    """What the program puts out. operands: without the dead indices."""
    jaxpr = program.jaxpr

    def keeps(var: Any) -> Keeps:
        if isinstance(var, Literal):
            return tuple(np.ones(size, bool) for size in np.shape(var.val))
        return keeps_of(labelled.roots(var), is_dead)

    env: dict[Var, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))

    def value(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        if atom in labelled.fixed:
            return taken(jnp.asarray(env[atom]), keeps(atom))
        return env[atom]

    for eqn in jaxpr.eqns:
        if labelled.fixed.makes(eqn):
            whole = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
            found = bind(eqn, whole)
        else:
            values = [value(atom) for atom in eqn.invars]
            before, after = ([keeps(v) for v in of] for of in (eqn.invars, eqn.outvars))
            found = _smaller(eqn, values, before, after, labelled.fixed)
        env.update(zip(eqn.outvars, found, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _smaller(
    eqn: JaxprEqn, values: list[Any], before: list[Keeps], after: list[Keeps], fixed: Fixed
) -> list[Any]:
    """An equation's outputs. before, after: what stays of its operands and of them."""
    everything = all(keep.all() for keeps in (*before, *after) for keep in keeps)
    moves = None if everything else _moves(eqn, fixed)
    if moves is not None:
        return [_moved(values[0], before[0], moves)]
    change = _CHANGES.get(eqn.primitive.name)
    changed = change(eqn, before, after) if change and not everything else {}
    if changed.get("feature_group_count") == 0:
        return [
            jnp.zeros(_sizes(keeps), dtype_of(var))
            for keeps, var in zip(after, eqn.outvars, strict=True)
        ]
    return bind(eqn, values, **changed)


def _moves(eqn: JaxprEqn, fixed: Fixed) -> list[Taken] | None:
    """Of an equation that takes indices which do not lie side by side, or which its operands tell."""
    if eqn.primitive.name == "slice" and not any(n > 1 for n in eqn.params["strides"] or ()):
        return None
    return taken_by(eqn, fixed.value)


def _moved(array: Any, keeps: Keeps, taken: Sequence[Taken]) -> Any:
    for axis, _, positions in taken:
        if not np.array_equal(positions, np.arange(keeps[axis].size)):
            place = np.cumsum(keeps[axis]) - 1
            array = array.take(place[positions[keeps[axis][positions]]], axis=axis)
    ordered = sorted(taken, key=lambda one: one.to)
    return jnp.transpose(array, [one.axis for one in ordered])


def keeps_of(axes: Axes, is_dead: NDArray[np.bool_]) -> Keeps:
    """axes: the roots of each."""
    return tuple(~is_dead[labels] for labels in axes)


def taken(array: Any, keeps: Keeps) -> Any:
    """The array without what goes; an axis of length 1 of a longer one stays."""
    for axis, keep in enumerate(keeps):
        if not keep.all() and array.shape[axis] == keep.size:
            array = array.take(np.flatnonzero(keep), axis=axis)
    return array


def _sizes(keeps: Keeps) -> tuple[int, ...]:
    return tuple(int(keep.sum()) for keep in keeps)


_Change = Callable[[JaxprEqn, Sequence[Keeps], Sequence[Keeps]], dict[str, Any]]


def _shape(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del eqn, before
    return {"shape": _sizes(after[0])}


def _new_sizes(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del eqn, before
    return {"new_sizes": _sizes(after[0])}


def _slice(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del after

    def ends(name: str) -> tuple[int, ...]:
        """So many stay before each."""
        both = zip(before[0], eqn.params[name], strict=True)
        return tuple(int(keep[:end].sum()) for keep, end in both)

    return {"start_indices": ends("start_indices"), "limit_indices": ends("limit_indices")}


def _split(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del before
    return {"sizes": tuple(_sizes(keeps)[eqn.params["axis"]] for keeps in after)}


def _pad(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del before
    config = []
    for (low, high, inside), keep in zip(eqn.params["padding_config"], after[0], strict=True):
        if keep.all():
            config.append((low, high, inside))
        else:
            config.append((int(keep[:low].sum()), int(keep[keep.size - high :].sum()), inside))
    return {"padding_config": tuple(config)}


def _slice_sizes(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del eqn, before
    return {"slice_sizes": _sizes(after[0])}


def _convolution(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del after
    groups = eqn.params["feature_group_count"]
    if groups == 1:
        return {}
    outputs = before[1][eqn.params["dimension_numbers"].rhs_spec[0]]
    return {"feature_group_count": int(outputs.reshape(groups, -1)[:, 0].sum())}


def _gather(eqn: JaxprEqn, before: Sequence[Keeps], after: Sequence[Keeps]) -> dict[str, Any]:
    del after
    sizes = eqn.params["slice_sizes"]
    left = [
        int(keep.sum()) if size == keep.size else size
        for size, keep in zip(sizes, before[0], strict=True)
    ]
    return {"slice_sizes": tuple(left)}


_CHANGES: dict[str, _Change] = {
    "broadcast_in_dim": _shape,
    "reshape": _new_sizes,
    "slice": _slice,
    "dynamic_slice": _slice_sizes,
    "split": _split,
    "pad": _pad,
    "conv_general_dilated": _convolution,
    "gather": _gather,
}
