"""Which index of which axis of which array is which atom: from the equations of a program.

Arrays that are added have the same channels, a convolution's input has those of its kernel's input axis, and so on. What is not known
here holds all its operands' indices, so that it sees them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.sharding import Sharding

from jpq_jax.removal.atoms import Atoms, Axes, Labels, is_place, places
from jpq_jax.removal.fixed import Fixed, taken_by
from jpq_jax.removal.program import (
    IDENTITIES,
    OVER_AXES,
    PLACEMENTS,
    is_elementwise,
    shape_of,
)
from jpq_jax.removal.reshapes import Reshapes


class Labelled(NamedTuple):
    """Attributes:
    atoms: their classes.
    of: for each variable, the labels of each of its axes.
    fixed: the arrays that depend on neither params nor inputs; all their indices are computed.
    choices: of how many axes, at most, that become one or were one, any may lose indices, but only one.
    """

    atoms: Atoms
    of: dict[Var, Axes]
    fixed: Fixed
    choices: int

    def roots(self, var: Any) -> Axes:
        """var: a variable."""
        return tuple(self.atoms.roots(labels) for labels in self.of[var])


def label(program: ClosedJaxpr, params: int, choice: int = 0) -> Labelled:
    """Of every array.

    params: how many of the program's operands are the model's own, which may lose indices. choice: where only one of several axes may
    lose indices, as heads or the channels of all heads, how many come behind it; the first if there are fewer.
    """
    jaxpr, atoms, fixed = program.jaxpr, Atoms(), Fixed(program)
    of = {var: _fresh(atoms, var) for var in [*jaxpr.invars[:params], *jaxpr.constvars]}
    own = [labels for var in jaxpr.invars[:params] for labels in of[var]]
    for var in jaxpr.invars[params:]:
        *outer, last = shape_of(var) or (0,)
        of[var] = (*map(places, outer), atoms.fresh(last)) if shape_of(var) else ()
        _hold(atoms, of[var], "comes with the input")
    reshapes = Reshapes(atoms, np.concatenate([places(0), *own]), choice)
    labeller = _Labeller(atoms, of, fixed, reshapes)
    for eqn in jaxpr.eqns:
        fresh = fixed.makes(eqn)
        found = [_fresh(atoms, v) for v in eqn.outvars] if fresh else labeller.outputs(eqn)
        for var, axes in zip(eqn.outvars, found, strict=True):
            if tuple(map(len, axes)) != shape_of(var):  # which would go wrong unseen
                raise RuntimeError(f"labels of {tuple(map(len, axes))} indices for {eqn}")
            of[var] = axes
    for var in jaxpr.outvars:
        if isinstance(var, Var):
            _hold(atoms, of[var], "is put out")
    return Labelled(atoms, of, fixed, reshapes.choices)


def _fresh(atoms: Atoms, var: Var) -> Axes:
    return tuple(atoms.fresh(size) for size in shape_of(var))


def _hold(atoms: Atoms, axes: Axes, why: str) -> None:
    for labels in axes:
        atoms.hold(labels, why)


class _Labeller:
    """The rules, by primitive."""

    def __init__(self, atoms: Atoms, of: dict[Var, Axes], fixed: Fixed, reshapes: Reshapes) -> None:
        self.atoms, self.of, self._fixed, self._reshapes = atoms, of, fixed, reshapes

    def outputs(self, eqn: JaxprEqn) -> list[Axes]:
        operands = [self._axes(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        found = None
        if is_elementwise(eqn):
            found = [self._elementwise(operands)] * len(eqn.outvars)
        elif name in OVER_AXES:
            found = self._over_axes(eqn, operands)
        elif not eqn.effects and name in _RULES:
            found = _RULES[name](self, eqn, operands)
        if found is None:
            why = f"goes into {name}, which is taken as it is"
            for axes in operands:
                _hold(self.atoms, axes, why)
            return [self._held(var, why) for var in eqn.outvars]
        return found

    def _axes(self, atom: Any) -> Axes:
        if isinstance(atom, Literal):
            return tuple(places(size) for size in np.shape(atom.val))
        return self.of[atom]

    def _held(self, var: Any, why: str) -> Axes:
        axes = _fresh(self.atoms, var)
        _hold(self.atoms, axes, why)
        return axes

    def _identity(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        del eqn
        return list(operands)

    def _placed(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        """What is spread over devices must stay a multiple of them."""
        placements = eqn.params.get("devices", [eqn.params.get("sharding")])
        for axes, placement in zip(operands, placements, strict=True):
            shape = tuple(map(len, axes))
            each = placement.shard_shape(shape) if isinstance(placement, Sharding) else shape
            for labels, size, part in zip(axes, shape, each, strict=True):
                if size != part:
                    self.atoms.hold(labels, "is spread over devices")
        return list(operands)

    def _elementwise(self, operands: Sequence[Axes]) -> Axes:
        """Scalars go with every shape."""
        first, *others = [axes for axes in operands if axes] or [()]
        for axes in others:
            for a, b in zip(first, axes, strict=True):
                self.atoms.tie(a, b)
        return first

    def _broadcast(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        shape, mapped = eqn.params["shape"], eqn.params["broadcast_dimensions"]
        axes = [self.atoms.fresh(size) for size in shape]
        for labels, to in zip(operands[0], mapped, strict=True):
            if len(labels) == shape[to]:
                axes[to] = labels
            else:
                self._reshapes.leave(labels)
        return [tuple(axes)]

    def _reshape(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes] | None:
        if eqn.params["dimensions"] is not None:
            return None
        if not math.prod(eqn.params["new_sizes"]):  # there is nothing whose indices these are
            return [_fresh(self.atoms, eqn.outvars[0])]
        return [self._reshapes.axes(operands[0], eqn.params["new_sizes"])]

    def _transpose(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        return [tuple(operands[0][axis] for axis in eqn.params["permutation"])]

    def _squeeze(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        gone = eqn.params["dimensions"]
        for axis in gone:
            self._reshapes.leave(operands[0][axis])
        return [tuple(labels for i, labels in enumerate(operands[0]) if i not in gone)]

    def _reverse(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        turned = eqn.params["dimensions"]
        return [
            tuple(labels[::-1] if i in turned else labels for i, labels in enumerate(operands[0]))
        ]

    def _take(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes] | None:
        taken = taken_by(eqn, self._fixed.value)
        if taken is None:
            return None
        ordered = sorted(taken, key=lambda one: one.to)
        return [tuple(operands[0][one.axis][one.positions] for one in ordered)]

    def _slice_somewhere(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        """Axes that are taken whole pass on."""
        found = self._take(eqn, operands)
        if found is not None:
            return found
        axes = []
        for labels, size in zip(operands[0], shape_of(eqn.outvars[0]), strict=True):
            if len(labels) != size:
                self.atoms.hold(labels, "is cut anywhere")
            axes.append(labels if len(labels) == size else places(size))
        return [tuple(axes)]

    def _update_slice(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        del eqn
        whole, update, *_ = operands
        for one, other in zip(whole, update, strict=True):
            if len(one) == len(other):
                self.atoms.tie(one, other)
            else:
                self.atoms.hold(one, "is overwritten in part")
                self.atoms.hold(other, "is put anywhere")
        return [whole]

    def _scatter(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes] | None:
        """Rows that are put into a table: axes that are put in whole pass on."""
        numbers = eqn.params["dimension_numbers"]
        table, indices, updates = operands
        if numbers.operand_batching_dims:
            return None
        left = [axis for axis in range(len(table)) if axis not in numbers.inserted_window_dims]
        of_updates = dict(zip(left, numbers.update_window_dims, strict=True))
        whole = {
            axis: to
            for axis, to in of_updates.items()
            if axis not in numbers.scatter_dims_to_operand_dims
            and len(updates[to]) == len(table[axis])
        }
        for axis, labels in enumerate(table):
            if axis in whole:
                self.atoms.tie(labels, updates[whole[axis]])
            else:
                self.atoms.hold(labels, "is put into anywhere")
        for axis, labels in enumerate(updates):
            if axis not in whole.values():
                self.atoms.hold(labels, "is put anywhere")
        _hold(self.atoms, indices, "is looked up by")
        return [table]

    def _split_axis(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        axis, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"])[:-1]
        parts = np.split(operands[0][axis], ends)
        return [(*operands[0][:axis], part, *operands[0][axis + 1 :]) for part in parts]

    def _concatenate(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        axis = eqn.params["dimension"]
        whole = np.concatenate([axes[axis] for axes in operands])
        others = self._elementwise([(*axes[:axis], *axes[axis + 1 :]) for axes in operands])
        return [(*others[:axis], whole, *others[axis:])]

    def _pad(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        axes = []
        for labels, config in zip(operands[0], eqn.params["padding_config"], strict=True):
            low, high, inside = config
            if not (low or high or inside):
                axes.append(labels)
            elif is_place(labels) or inside or low < 0 or high < 0:
                self.atoms.hold(labels, "is padded, or cut, inside")
                axes.append(places(low + high + len(labels) + inside * max(len(labels) - 1, 0)))
            else:
                axes.append(np.concatenate([self.atoms.fresh(low), labels, self.atoms.fresh(high)]))
        return [tuple(axes)]

    def _over_axes(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        """They stay, and the others pass on."""
        gone, shape = OVER_AXES[eqn.primitive.name](eqn), shape_of(eqn.outvars[0])
        arrays = [axes for axes in operands if axes]
        for axes in arrays:
            for axis in gone:
                self.atoms.hold(axes[axis], f"is gone over as a whole, by {eqn.primitive.name}")
        if len(shape) < len(arrays[0]):
            left = [tuple(x for i, x in enumerate(axes) if i not in gone) for axes in arrays]
            return [self._elementwise(left)] * len(eqn.outvars)
        axes = self._elementwise(arrays)
        pairs = enumerate(zip(axes, shape, strict=True))
        passed = tuple(places(size) if i in gone else labels for i, (labels, size) in pairs)
        return [passed] * len(eqn.outvars)

    def _window(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        """A pool passes an axis on that its window does not move along."""
        axes = []
        for axis, (labels, size) in enumerate(
            zip(operands[0], shape_of(eqn.outvars[0]), strict=True)
        ):
            still = all(
                eqn.params[field][axis] in (1, (0, 0))
                for field in ("window_dimensions", "window_strides", "padding", "base_dilation")
            )
            if not still:
                self.atoms.hold(labels, "is pooled along")
            axes.append(labels if still else places(size))
        return [tuple(axes)]

    def _dot(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes]:
        (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        for a, b in ((left, right), (left_batch, right_batch)):
            for i, j in zip(a, b, strict=True):
                self.atoms.tie(operands[0][i], operands[1][j])
        free = [
            [labels for i, labels in enumerate(axes) if i not in (*summed, *batch)]
            for axes, summed, batch in zip(
                operands, (left, right), (left_batch, right_batch), strict=True
            )
        ]
        return [(*(operands[0][i] for i in left_batch), *free[0], *free[1])]

    def _convolution(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes] | None:
        numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
        if eqn.params["batch_group_count"] != 1:
            return None
        (batch, feature, *space), (out, into, *filters) = numbers.lhs_spec, numbers.rhs_spec
        image, kernel = operands
        for axes, held in ((image, space), (kernel, filters)):
            for axis in held:
                self.atoms.hold(axes[axis], "is a place in an image or a filter")
        if groups == 1:
            self.atoms.tie(image[feature], kernel[into])
        else:
            self._tie_groups(image[feature], kernel, out, into, groups)
        result = [places(size) for size in shape_of(eqn.outvars[0])]
        result[numbers.out_spec[0]], result[numbers.out_spec[1]] = image[batch], kernel[out]
        return [tuple(result)]

    def _tie_groups(self, inputs: Labels, kernel: Axes, out: int, into: int, groups: int) -> None:
        """A group of channels goes as one, its outputs with its inputs."""
        self.atoms.hold(kernel[into], "is shared by the groups of a convolution")
        outputs = kernel[out].reshape(groups, -1)
        for labels in (inputs.reshape(groups, -1), outputs):
            self.atoms.tie(labels, np.broadcast_to(outputs[:, :1], labels.shape))

    def _gather(self, eqn: JaxprEqn, operands: Sequence[Axes]) -> list[Axes] | None:
        """Rows looked up in a table: axes that are taken whole pass on."""
        taken = self._take(eqn, operands)
        if taken is not None:
            return taken
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        if numbers.operand_batching_dims:
            return None
        table, indices = operands
        axes = [places(size) for size in shape_of(eqn.outvars[0])]
        left = [axis for axis in range(len(table)) if axis not in dropped]
        for axis, labels in enumerate(table):
            whole = (
                axis in left and sizes[axis] == len(labels) and axis not in numbers.start_index_map
            )
            if whole:
                axes[numbers.offset_dims[left.index(axis)]] = labels
            else:
                self.atoms.hold(labels, "is looked up in")
        for labels in indices:
            self.atoms.hold(labels, "is looked up by")
        return [tuple(axes)]


_Rule = Callable[[_Labeller, JaxprEqn, Sequence[Axes]], "list[Axes] | None"]
_RULES: dict[str, _Rule] = {
    "broadcast_in_dim": _Labeller._broadcast,
    "reshape": _Labeller._reshape,
    "transpose": _Labeller._transpose,
    "squeeze": _Labeller._squeeze,
    "rev": _Labeller._reverse,
    "slice": _Labeller._take,
    "dynamic_slice": _Labeller._slice_somewhere,
    "dynamic_update_slice": _Labeller._update_slice,
    "split": _Labeller._split_axis,
    "concatenate": _Labeller._concatenate,
    "pad": _Labeller._pad,
    "dot_general": _Labeller._dot,
    "conv_general_dilated": _Labeller._convolution,
    "gather": _Labeller._gather,
    **dict.fromkeys(IDENTITIES, _Labeller._identity),
    **dict.fromkeys(PLACEMENTS, _Labeller._placed),
    **{f"scatter{how}": _Labeller._scatter for how in ("", "-add", "-sub", "-mul", "-min", "-max")},
    **{f"reduce_window_{of}": _Labeller._window for of in ("sum", "max", "min")},
}
