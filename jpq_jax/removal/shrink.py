"""A smaller model that computes what the pruned one does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Var
from numpy.typing import NDArray

from jpq_jax.removal.constants import constants
from jpq_jax.removal.dead import Dead, Lengths, find_dead
from jpq_jax.removal.known import Known
from jpq_jax.removal.labels import Labelled, label
from jpq_jax.removal.program import flat_program
from jpq_jax.removal.smaller import Keeps, keeps_of, run_smaller, taken
from jpq_jax.vocabulary import (
    Codes,
    PyTree,
    dequantize,
    is_codes,
    leaves_with_paths,
)

Function = Callable[..., Any]


class Shortened(NamedTuple):
    """One axis of one leaf of which something went, or could have.

    Attributes:
      path: of the leaf.
      axis: of it.
      before: its length.
      after: the length now.
      stays: of indices that are pruned and stay all the same, how many for which reason.
    """

    path: str
    axis: int
    before: int
    after: int
    stays: dict[str, int]


class Shrunk(NamedTuple):
    """Attributes:
    params: like the given ones, with shorter axes; a bias that took a constant up is floats.
    apply: (params, *inputs) -> what the model's function returns; for the smaller params, dense or codes, and inputs of any
      batch but an empty one. For inputs of other shapes than the example's it raises ValueError if other channels, or constants,
      came of them.
      Rules for derivatives and for batches that the model's functions have of their own are not kept.
    report: the axes.
    kept: of each leaf by its path, for each axis, [length] bool: which indices are left.
    """

    params: PyTree
    apply: Function
    report: list[Shortened]
    kept: dict[str, Keeps]


def shrink(
    apply: Function, params: PyTree, *inputs: Any, multiple: int = 1, empty: bool = False
) -> Shrunk:
    """Takes pruned channels out of a model: its outputs stay what they are, to rounding.

    The function's own program tells which indices of which axes of the leaves go together (convolutions, plain, grouped and
    depthwise, dense layers, attention, norms, sums, concatenations, pools, elementwise functions), and what can be told of the values.
    A channel goes if what comes after has no weight for it, or if it is the same whatever the input: 0, or a constant that a bias
    behind the next sum takes up. What cannot be proved stays; the report says why.
    Values are taken to be finite, but for those that are known: a channel that is 1 / 0 whatever the input stays.

    Where a reshape makes several axes of one, as heads, or one of several, only one of them can lose indices: heads, or the channels of
    all heads. For the whole model that choice is taken which leaves the fewest weights.

    Args:
      apply: a pure function (params, *inputs) -> outputs of dense params, as it is in use and not in training. Of an NNX
        model, `lambda state, x: nnx.merge(graph, state)(x)`; `nnx.merge(graph, shrunk.params)` is then a smaller module, too, if
        its own code asks its arrays for their shapes.
      params: its weights, dense, with zeros for what is pruned, or codes as `finalize` and `compress` return them. All of them are
        looked at in full precision on the host.
      inputs: examples, or their shapes.
      multiple: what the lengths of shortened axes are to be multiples of, such as 8 for accelerators; the rest stays.
      empty: whether axes may have no index left, as within a residual block that gives nothing: it then takes no time. By default
        one index stays, since a model's own code may not expect arrays without elements.

    Raises:
      ValueError: `multiple` below 1.
    """
    if multiple < 1:
        raise ValueError(f"shrink: got multiple={multiple}, expected at least 1")
    dense = dequantize(params)
    found = _best(apply, dense, inputs, Lengths(multiple, 0 if empty else 1))
    leaves = leaves_with_paths(params)
    report = _report(leaves, found.roots, found.keeps, found.dead)
    kept = {path: keep for (path, _), keep in zip(leaves, found.keeps, strict=True)}
    smaller = _Smaller(apply, dense, inputs, found)
    return Shrunk(_shorter(params, found.keeps, found.dead), smaller, report, kept)


class _Smaller:
    """The function of the smaller params: the program is traced anew for each shape of inputs, and run without what went."""

    def __init__(self, apply: Function, dense: PyTree, inputs: Any, found: _Found) -> None:
        self._apply, self._dense, self._found = apply, dense, found
        self._shapes = _shapes(inputs)

    def __call__(self, params: PyTree, *inputs: Any) -> Any:
        dense = dequantize(params)
        program, structure = flat_program(self._apply, self._dense, *inputs)
        count = len(self._found.keeps)
        labelled = label(program, count, self._found.asked.choice)
        if not self._are_alike(_shapes(inputs)):
            self._check(program, labelled)
        is_dead = np.zeros(labelled.atoms.size, bool)
        for var, keeps in zip(program.jaxpr.invars[:count], self._found.keeps, strict=True):
            for labels, keep in zip(labelled.roots(var), keeps, strict=True):
                is_dead[labels[~keep]] = True
        if is_dead[list(labelled.atoms.reasons())].any():
            raise ValueError(_OTHERWISE)
        operands = [*jax.tree.leaves(dense), *jax.tree.leaves(inputs)]
        return jax.tree.unflatten(structure, run_smaller(program, labelled, is_dead, operands))

    def _are_alike(self, shapes: list[tuple[int, ...]]) -> bool:
        """Whether what was found for the example holds for inputs of these shapes without a look at them."""
        if self._found.dead.added:  # a sum over the batch makes another constant of a constant
            return shapes == self._shapes
        return [shape[1:] for shape in shapes] == [shape[1:] for shape in self._shapes]

    def _check(self, program: ClosedJaxpr, labelled: Labelled) -> None:
        """What is constant may be another constant for inputs of other shapes, as at the border of a padded image."""
        known = constants(program, jax.tree.leaves(self._dense))
        again = _find(program, labelled, known, self._found.asked)
        same = again.dead.added.keys() == self._found.dead.added.keys() and all(
            np.allclose(again.dead.added[place], value, rtol=1e-6)
            for place, value in self._found.dead.added.items()
        )
        pairs = zip(again.keeps, self._found.keeps, strict=True)
        if not same or not all(
            np.array_equal(a, b) for one in pairs for a, b in zip(*one, strict=True)
        ):
            raise ValueError(_OTHERWISE)


class _Asked(NamedTuple):
    """Attributes:
    leaves: how many there are.
    choice: as in `label`.
    lengths: of their axes.
    """

    leaves: int
    choice: int
    lengths: Lengths


class _Found(NamedTuple):
    """Attributes:
    dead: what goes.
    roots: of each leaf's axes.
    keeps: of each leaf, what stays.
    asked: how it was found.
    """

    dead: Dead
    roots: list[tuple[NDArray[np.int64], ...]]
    keeps: list[Keeps]
    asked: _Asked

    @property
    def weights(self) -> int:
        """That stay."""
        return sum(math.prod(int(keep.sum()) for keep in keeps) for keeps in self.keeps)


_OTHERWISE = (
    "shrink: for inputs of these shapes other channels are needed, or other constants, than for the example's; "
    "shrink the model with an example of these shapes"
)


def _best(apply: Function, dense: PyTree, inputs: Any, lengths: Lengths) -> _Found:
    """With the fewest weights, of all choices of axes that may lose indices."""
    program, _ = flat_program(apply, dense, *inputs)
    leaves = jax.tree.leaves(dense)
    known = constants(program, leaves)

    def chosen(choice: int) -> tuple[_Found, int]:
        labelled = label(program, len(leaves), choice)
        asked = _Asked(len(leaves), choice, lengths)
        return _find(program, labelled, known, asked), labelled.choices

    first, choices = chosen(0)
    others = [chosen(choice)[0] for choice in range(1, choices)]
    return min([first, *others], key=lambda found: found.weights)


def _find(
    program: ClosedJaxpr, labelled: Labelled, known: dict[Var, Known], asked: _Asked
) -> _Found:
    dead = find_dead(program, labelled, known, asked.leaves, asked.lengths)
    roots = [labelled.roots(var) for var in program.jaxpr.invars[: asked.leaves]]
    return _Found(dead, roots, [keeps_of(axes, dead.is_dead) for axes in roots], asked)


def _shapes(inputs: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]


def _shorter(params: PyTree, keeps: Sequence[Keeps], dead: Dead) -> PyTree:
    leaves, structure = jax.tree.flatten(params, is_leaf=is_codes)
    new = []
    for i, (leaf, keep) in enumerate(zip(leaves, keeps, strict=True)):
        added = [(axis, value) for (at, axis), value in dead.added.items() if at == i]
        whole = dequantize(leaf) if added else leaf
        for axis, value in added:
            along = np.reshape(value, [-1 if n == axis else 1 for n in range(len(keep))])
            whole = (np.asarray(whole, np.float64) + along).astype(leaf.dtype)
        new.append(_shorter_leaf(whole, keep))
    return jax.tree.unflatten(structure, new)


def _shorter_leaf(leaf: Any, keep: Keeps) -> Any:
    if not is_codes(leaf):
        return _on_host(leaf, keep) if keep else leaf
    scale = None if leaf.scale is None else _on_host(leaf.scale, keep)
    return Codes(_on_host(leaf.code, keep), leaf.codebook, leaf.bits, leaf.dtype, scale)


def _on_host(array: Any, keep: Keeps) -> jax.Array:
    """What is left of it. JAX would compile a program for each shape."""
    return jnp.asarray(taken(np.asarray(array), keep))


# Such as what a slice leaves out, of positions perhaps, that inputs of other shapes have use for.
_UNSUMMED = "is summed over nowhere in this function"


def _report(
    leaves: list[tuple[str, Any]],
    roots: Sequence[tuple[NDArray[np.int64], ...]],
    keeps: Sequence[Keeps],
    dead: Dead,
) -> list[Shortened]:
    report = []
    for (path, leaf), axes, keep in zip(leaves, roots, keeps, strict=True):
        if not axes:
            continue
        weights = np.asarray(leaf.code if is_codes(leaf) else leaf)
        for axis, (labels, kept) in enumerate(zip(axes, keep, strict=True)):
            others = tuple(i for i in range(weights.ndim) if i != axis)
            empty = kept & ~(weights != 0).any(axis=others) if weights.ndim > 1 else ~kept & kept
            stays = Counter(dead.why.get(int(root), _UNSUMMED) for root in labels[empty])
            if stays or not kept.all():
                report.append(Shortened(path, axis, kept.size, int(kept.sum()), dict(stays)))
    return report
