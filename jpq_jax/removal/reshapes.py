"""Which atom each index is when axes are laid into one, or one is split into several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jpq_jax.removal.atoms import Atoms, Axes, Labels, is_place, places


class Reshapes:
    """Of a program; an index of one of several axes goes with all that it has along the others.

    Attributes:
      choices: of how many axes, at most, any could have been the one.
    """

    def __init__(self, atoms: Atoms, own: Labels, choice: int) -> None:
        """own: the atoms of the params. choice: which axis, counted from the last, as in `label`."""
        self._atoms, self._own, self._choice = atoms, own, choice
        self.choices = 1

    def axes(self, operand: Axes, shape: Sequence[int]) -> Axes:
        """The labels of an array with elements that gets another shape."""
        axes: list[Labels] = []
        for before, after in reshape_groups([len(labels) for labels in operand], shape):
            merged = self._merged([operand[axis] for axis in before])
            axes += self._split(merged, [shape[axis] for axis in after])
        return tuple(axes)

    def leave(self, labels: Labels) -> None:
        """An axis of one index ends here, so that nothing else would tell that it is needed."""
        self._atoms.hold(labels, "is taken by itself")

    def _merged(self, axes: list[Labels]) -> Labels:
        """One axis of several: its atoms are those of one that may go, and the others stay."""
        long = [i for i, labels in enumerate(axes) if len(labels) > 1]
        for labels in axes:
            if len(labels) == 1 and len(axes) > 1:
                self.leave(labels)
        if not long:
            return axes[0] if len(axes) == 1 else places(1)
        along = self._chosen([i for i in long if self._may_go(axes[i])] or long[-1:])
        for i in long:
            if i != along:
                self._atoms.hold(axes[i], "is laid into one axis with others")
        shape = [len(labels) if i == along else 1 for i, labels in enumerate(axes)]
        whole = np.broadcast_to(axes[along].reshape(shape), [len(labels) for labels in axes])
        return whole.reshape(-1)

    def _split(self, labels: Labels, sizes: Sequence[int]) -> list[Labels]:
        """Several axes of one: of one of them an index goes with all that it has along the others."""
        if len(labels) == 1 and len(sizes) != 1:
            self.leave(labels)
            return [self._atoms.fresh(1) for _ in sizes]
        long = [i for i, size in enumerate(sizes) if size > 1] or [0]
        if len(long) == 1:
            return [labels if [i] == long else self._atoms.fresh(1) for i in range(len(sizes))]
        axes = [places(size) for size in sizes]
        if self._may_go(labels):
            roots = self._atoms.roots(labels).reshape(sizes)
            alike = [i for i in long if (roots == _first_along(roots, i)).all()]
            along = alike[0] if len(alike) == 1 else self._chosen(long)
            self._atoms.tie(roots, np.broadcast_to(_first_along(roots, along), roots.shape))
            axes[along] = _first_along(roots, along).reshape(-1)
        elif not is_place(labels):
            self._atoms.hold(labels, "is one axis of several in the program")
        return axes

    def _chosen(self, axes: Sequence[int]) -> int:
        """Of axes of which one may lose indices."""
        self.choices = max(self.choices, len(axes))
        return axes[max(len(axes) - 1 - self._choice, 0)]

    def _may_go(self, labels: Labels) -> bool:
        """Whether any index is one of the params', and nothing holds it so far."""
        roots = self._atoms.roots(labels)
        own = np.isin(roots, self._atoms.roots(self._own))
        return bool((own & ~self._atoms.is_held(roots)).any())


def _first_along(grid: Labels, axis: int) -> Labels:
    """The first of all others, for each index of an axis."""
    at = tuple(slice(None) if i == axis else slice(1) for i in range(grid.ndim))
    return grid[at]


def reshape_groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Which axes become which: the shortest runs of axes with as many elements."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        old, new = [], []
        size, other = 1, 1
        while (not old and not new) or size != other:
            if (size <= other and i < len(before)) or j == len(after):
                old, size, i = [*old, i], size * before[i], i + 1
            else:
                new, other, j = [*new, j], other * after[j], j + 1
        groups.append((old, new))
    return groups
