"""Which atoms can go: the most, such that nothing that stays can tell.

All that may go is taken to, and then the others are called back, until no more has to be. An index that goes must give nothing where
it is summed over with weights: the weights are 0, for all outputs that stay; or the value is 0 whatever the input; or it is
another constant, that a bias behind the sum can take up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from jpq_jax.removal.atoms import Labels
from jpq_jax.removal.constants import of
from jpq_jax.removal.known import Known
from jpq_jax.removal.labels import Labelled
from jpq_jax.removal.products import is_uniform, kernel_matrix
from jpq_jax.removal.program import dtype_of, shape_of
from jpq_jax.removal.reshapes import reshape_groups


class Bias(NamedTuple):
    """Attributes:
    leaf: which of the params is added behind a sum.
    axis: of it, that lies along the sum's outputs.
    sign: -1 if it is subtracted.
    """

    leaf: int
    axis: int
    sign: int


class Sum(NamedTuple):
    """A product that sums over an axis of data.

    Attributes:
      labels: [n] of that axis.
      weights: [n, others, outputs], by what it is multiplied; None where that is not known.
      outputs: the labels of the outputs; of no meaning where the weights are not known.
      is_zero: [n, others] bool, whether the data there are 0 whatever the input.
      constant: [n] what they are; NaN where that is not known, or differs from place to place.
      is_broken: [n] bool, whether any of them is known to be infinite or no number, which weights of 0 make no 0 of.
      bias: what may take constants up; None if nothing can.
    """

    labels: Labels
    weights: NDArray[Any] | None
    outputs: Labels
    is_zero: NDArray[np.bool_]
    constant: NDArray[np.float64]
    is_broken: NDArray[np.bool_]
    bias: Bias | None


class Dead(NamedTuple):
    """Attributes:
    is_dead: by atom, whether it goes.
    why: by the root of an atom that stays, what keeps it.
    added: by leaf and axis, what is added to a bias for the constants that went, [n] float64.
    """

    is_dead: NDArray[np.bool_]
    why: dict[int, str]
    added: dict[tuple[int, int], NDArray[np.float64]]


class Lengths(NamedTuple):
    """What axes of params may be shortened to.

    Attributes:
      multiple: of so many.
      least: 0 or 1.
    """

    multiple: int
    least: int


def find_dead(
    program: ClosedJaxpr, labelled: Labelled, known: dict[Var, Known], params: int, lengths: Lengths
) -> Dead:
    """params: how many of the program's operands are. lengths: of their axes."""
    atoms = labelled.atoms
    why = atoms.reasons()
    leaves = [labelled.roots(var) for var in program.jaxpr.invars[:params]]
    sums = list(_sums(program, labelled, known, params))
    axes = [labels for axes in leaves for labels in axes]
    # The program is run again without what the params lack, so nothing else can go.
    of_params = np.zeros(atoms.size, bool)
    for labels in axes:
        of_params[labels] = True
    is_dead = np.zeros(atoms.size, bool)
    for one in sums:  # what is summed over nowhere may be for other functions
        is_dead[one.labels] = of_params[one.labels]
    is_dead[list(why)] = False
    axes += _outputs_of_groups(program, labelled)
    while True:
        _call_back(is_dead, sums, why)
        if not _round_up(is_dead, axes, lengths, why):
            break
    return Dead(is_dead, why, _added(is_dead, sums))


def _call_back(is_dead: NDArray[np.bool_], sums: Sequence[Sum], why: dict[int, str]) -> None:
    """Those that are missed where they are summed over."""
    missed = True
    while missed:
        missed = False
        for one in sums:
            gone = is_dead[one.labels]
            back = gone & _matters(one, is_dead)
            if back.any():
                missed = True
                for root in np.unique(one.labels[back]).tolist():
                    is_dead[root] = False
                    why[root] = _reason(one, one.labels == root)


def _matters(one: Sum, is_dead: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n] whether an index gives something to the outputs that stay, and no bias can."""
    if one.weights is None:
        return np.logical_not(one.is_zero.all(axis=1)) | one.is_broken
    used = (one.weights[:, :, ~is_dead[one.outputs]] != 0).any(axis=2)
    given = (used & ~one.is_zero).any(axis=1)
    return (given if one.bias is None else given & np.isnan(one.constant)) | one.is_broken


def _reason(one: Sum, at: NDArray[np.bool_]) -> str:
    if one.is_broken[at].any():
        return "is infinite or no number, which reaches the outputs"
    if one.weights is None or np.isnan(one.constant[at]).any():
        return "is used"
    return "is a constant other than 0, which no bias behind it takes up"


def _round_up(
    is_dead: NDArray[np.bool_],
    axes: Sequence[Labels],
    lengths: Lengths,
    why: dict[int, str],
) -> bool:
    """Calls the first ones back until each axis has a multiple of indices, and the least; whether any were."""
    called, multiple = False, lengths.multiple
    for labels in axes:
        gone = np.flatnonzero(is_dead[labels])
        left = len(labels) - gone.size
        wanted = min(max(-(-left // multiple), lengths.least) * multiple, len(labels))
        for root in labels[gone[: wanted - left]].tolist():
            called = True
            is_dead[root] = False
            why[root] = f"makes up a multiple of {multiple}" if multiple > 1 else "is the last one"
    return called


def _outputs_of_groups(program: ClosedJaxpr, labelled: Labelled) -> list[Labels]:
    """Of convolutions by groups, whose kernel may be none of the params."""
    return [
        labelled.roots(eqn.invars[1])[eqn.params["dimension_numbers"].rhs_spec[0]]
        for eqn in program.jaxpr.eqns
        if eqn.params.get("feature_group_count", 1) > 1
    ]


def _added(
    is_dead: NDArray[np.bool_], sums: Sequence[Sum]
) -> dict[tuple[int, int], NDArray[np.float64]]:
    added: dict[tuple[int, int], NDArray[np.float64]] = {}
    for one in sums:
        if one.weights is None or one.bias is None:
            continue
        constant = np.where(is_dead[one.labels], np.nan_to_num(one.constant), 0)
        change = one.bias.sign * np.einsum("n,nko->o", constant, one.weights.astype(np.float64))
        if change.any():
            place = (one.bias.leaf, one.bias.axis)
            added[place] = added.get(place, 0) + change
    return added


def _sums(
    program: ClosedJaxpr, labelled: Labelled, known: dict[Var, Known], params: int
) -> Iterator[Sum]:
    biases = _Biases(program, labelled, params)
    for eqn in program.jaxpr.eqns:
        operands = [of(known, atom) for atom in eqn.invars]
        if eqn.primitive.name == "dot_general":
            yield from _of_dot(eqn, operands, labelled, biases)
        # Groups go as one, and sum over themselves.
        elif eqn.params.get("feature_group_count") == 1:
            yield _of_convolution(eqn, operands, labelled, biases)


def _of_convolution(
    eqn: JaxprEqn, operands: Sequence[Known], labelled: Labelled, biases: _Biases
) -> Sum:
    image, kernel = operands
    feature, out = (
        eqn.params["dimension_numbers"].lhs_spec[1],
        eqn.params["dimension_numbers"].rhs_spec[0],
    )
    labels = labelled.roots(eqn.invars[0])[feature]
    is_zero, constant, broken = _along(image, (feature,))
    outputs = labelled.roots(eqn.invars[1])[out]
    if not kernel.whole:
        return Sum(labels, None, outputs, is_zero, constant, broken, None)
    weights = kernel_matrix(eqn, kernel)[:, 0].transpose(1, 0, 2)
    is_zero = np.broadcast_to(is_zero, weights.shape[:2])
    # At a padded border fewer of a constant's weights are added than elsewhere.
    along = eqn.params["dimension_numbers"].out_spec[1]
    bias = biases.behind(eqn, along) if is_uniform(eqn) else None
    return Sum(labels, weights, outputs, is_zero, constant, broken, bias)


def _of_dot(
    eqn: JaxprEqn, operands: Sequence[Known], labelled: Labelled, biases: _Biases
) -> Iterator[Sum]:
    summed, batch = eqn.params["dimension_numbers"]
    roots = [labelled.roots(atom) for atom in eqn.invars]
    which = next((i for i in (1, 0) if operands[i].whole), None)
    for n, _ in enumerate(summed[0]):
        if which is None or batch[0]:  # of two arrays of data either may be 0
            axes = [summed[side][n] for side in (0, 1)]
            zero, _, broken = zip(
                *(_along(operands[side], (axes[side],)) for side in (0, 1)), strict=True
            )
            labels, nothing = roots[0][axes[0]], np.full(len(zero[0]), np.nan)
            is_zero, is_broken = np.logical_or(*zero), np.logical_or(*broken)
            yield Sum(labels, None, np.zeros(0, int), is_zero, nothing, is_broken, None)
            continue
        data, weights = operands[1 - which], operands[which]
        first = [summed[side][n] for side in (0, 1)]
        others = [[a for i, a in enumerate(summed[side]) if i != n] for side in (0, 1)]
        mine, its = first[1 - which], first[which]
        is_zero, constant, broken = _along(data, (mine, *others[1 - which]))
        free = [i for i in range(len(weights.shape)) if i not in summed[which]]
        whole = np.broadcast_to(weights.value, weights.shape)
        matrix = np.transpose(whole, [its, *others[which], *free])
        matrix = matrix.reshape(*is_zero.shape, math.prod(weights.shape[axis] for axis in free))
        # Of outputs along several axes, or by sums over several, all are taken to stay, and no bias to help.
        outputs = roots[which][free[0]] if len(free) == 1 else np.zeros(matrix.shape[2], int)
        along = len(shape_of(eqn.outvars[0])) - 1 if which == 1 else 0
        bias = biases.behind(eqn, along) if len(free) == len(summed[0]) == 1 else None
        yield Sum(roots[1 - which][mine], matrix, outputs, is_zero, constant, broken, bias)


def _along(
    data: Known, axes: tuple[int, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]]:
    """Of the first of these axes and the others together, [n, others], whether it is 0 everywhere else; [n] the constant; and
    [n] whether it is infinite or no number somewhere.
    """
    wide = data.full(axes)
    rest = tuple(i for i in range(len(data.shape)) if i not in axes)
    order = np.argsort(np.argsort(axes)).tolist()
    first, *others = (data.shape[axis] for axis in axes)
    is_zero = wide.is_zero.all(axis=rest).transpose(order).reshape(first, math.prod(others))
    beside = tuple(i for i in range(len(data.shape)) if i != axes[0])
    broken = np.asarray(wide.is_broken.any(axis=beside))
    same = all(wide.value.shape[i] == 1 for i in rest) and len(axes) == 1
    if not same or np.iscomplexobj(wide.value):
        return is_zero, np.full(len(is_zero), np.nan), broken
    flat = wide.value.reshape(-1).astype(np.float64)
    return is_zero, np.where(wide.is_known.reshape(-1), flat, np.nan), broken


class _Biases:
    """Finds what is added to a sum, if that is a leaf of the params by itself, and used for nothing else."""

    def __init__(self, program: ClosedJaxpr, labelled: Labelled, params: int) -> None:
        jaxpr = program.jaxpr
        self._labelled = labelled
        self._leaf = {var: i for i, var in enumerate(jaxpr.invars[:params])}
        self._made_by = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        self._users: dict[Var, list[JaxprEqn | None]] = {}
        for eqn in jaxpr.eqns:
            for atom in eqn.invars:
                self._use(atom, eqn)
        for atom in jaxpr.outvars:
            self._use(atom, None)

    def behind(self, eqn: JaxprEqn, axis: int) -> Bias | None:
        """axis: of the outputs of a sum."""
        var, along = eqn.outvars[0], axis
        user = self._only_user(var)
        while user is not None and user.primitive.name in _LAYOUT and along is not None:
            along = _LAYOUT[user.primitive.name](user, along)
            var = user.outvars[0]
            user = self._only_user(var)
        if user is None or along is None or not self._is_added(var, user):
            return None
        left, right = user.invars
        found = self._leaf_behind(right if left is var else left, along)
        if found is None:
            return None
        outputs = self._labelled.roots(eqn.outvars[0])[axis]
        sign = -1 if user.primitive.name == "sub" else 1
        return Bias(*found, sign) if outputs.all() else None

    def _is_added(self, var: Var, user: JaxprEqn) -> bool:
        """Or another is subtracted from it."""
        name = user.primitive.name
        return name in ("add", "add_any") or (name == "sub" and user.invars[0] is var)

    def _leaf_behind(self, atom: Any, along: int) -> tuple[int, int] | None:
        """A leaf that lies along this axis alone, and its own axis that does."""
        chain: list[JaxprEqn] = []
        while not isinstance(atom, Literal) and self._only_user(atom) is not None:
            if atom in self._leaf:
                shape = shape_of(atom)
                for axis, size in enumerate(shape):
                    if size == math.prod(shape) and _carried(chain, axis) == along:
                        return self._leaf[atom], axis
                return None
            eqn = self._made_by.get(atom)
            if eqn is None or eqn.primitive.name not in _LAYOUT:
                return None
            chain = [eqn, *chain]
            atom = eqn.invars[0]
        return None

    def _use(self, atom: Any, eqn: JaxprEqn | None) -> None:
        if not isinstance(atom, Literal):
            self._users.setdefault(atom, []).append(eqn)

    def _only_user(self, var: Var) -> JaxprEqn | None:
        users = self._users.get(var, [])
        return users[0] if len(users) == 1 else None


def _carried(layouts: Sequence[JaxprEqn], axis: int | None) -> int | None:
    """Where an axis comes to lie."""
    for eqn in layouts:
        axis = None if axis is None else _LAYOUT[eqn.primitive.name](eqn, axis)
    return axis


def _as_it_is(eqn: JaxprEqn, axis: int) -> int:
    del eqn
    return axis


def _cast(eqn: JaxprEqn, axis: int) -> int | None:
    """Among floats; others are rounded before the sum."""
    dtypes = (dtype_of(eqn.invars[0]), eqn.params["new_dtype"])
    return axis if all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes) else None


def _broadcast(eqn: JaxprEqn, axis: int) -> int | None:
    to = eqn.params["broadcast_dimensions"][axis]
    return to if eqn.params["shape"][to] == shape_of(eqn.invars[0])[axis] else None


def _squeezed(eqn: JaxprEqn, axis: int) -> int | None:
    gone = eqn.params["dimensions"]
    return None if axis in gone else axis - sum(i < axis for i in gone)


def _reshaped(eqn: JaxprEqn, axis: int) -> int | None:
    """Unless it is merged with others, or split."""
    before, after = shape_of(eqn.invars[0]), eqn.params["new_sizes"]
    for old, new in reshape_groups(before, after) if math.prod(before) else []:
        left = [i for i in new if after[i] == before[axis]]
        if axis in old and left and math.prod(after[i] for i in new) == before[axis]:
            return left[-1]
    return None


_LAYOUT: dict[str, Callable[[JaxprEqn, int], int | None]] = {
    "copy": _as_it_is,
    "name": _as_it_is,
    "convert_element_type": _cast,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "transpose": lambda eqn, axis: eqn.params["permutation"].index(axis),
}
"""What changes how an array lies only: where an axis of its operand comes to lie, if it still is one."""
