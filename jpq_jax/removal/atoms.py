"""Indices that can only go together, by union-find."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]  # of an axis: the atom of each index
Axes = tuple[Labels, ...]  # the labels of each axis of an array


class Atoms:
    """Classes of indices of axes. One that is held, for a reason, cannot go; atom 0 is, from the start: a place in space or time."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._held_for: dict[int, str] = {0: "is a place in a batch, an image or a sequence"}

    def fresh(self, size: int) -> Labels:
        """An axis of indices that nothing is known of yet."""
        new = np.arange(self._parent.size, self._parent.size + size)
        self._parent = np.concatenate([self._parent, new])
        return new

    def roots(self, labels: Labels) -> Labels:
        """The atom that stands for the class of each."""
        found = self._parent[labels]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                break
            found = further
        self._parent[labels] = found
        return found

    def tie(self, a: Labels, b: Labels) -> None:
        """Index by index."""
        while True:
            one, other = self.roots(a), self.roots(b)
            low, high = np.minimum(one, other), np.maximum(one, other)
            apart = low != high
            if not apart.any():
                return
            # Of several that one is tied to, the lowest; the others come in the next round.
            order = np.argsort(-low[apart], kind="stable")
            highs, lows = high[apart][order], low[apart][order]
            self._parent[highs] = lows

    def hold(self, labels: Labels, why: str) -> None:
        """They cannot go, and what they are tied to, now or later."""
        for atom in np.unique(self.roots(labels)).tolist():
            self._held_for.setdefault(atom, why)

    def is_held(self, labels: Labels) -> NDArray[np.bool_]:
        """Of each, whether it cannot go."""
        held = np.fromiter(self._held_for, np.int64, len(self._held_for))
        return np.isin(self.roots(labels), self.roots(held))

    def reasons(self) -> dict[int, str]:
        """Why each class that is held is, by its root."""
        found: dict[int, str] = {}
        for atom, why in self._held_for.items():
            root = int(self.roots(np.array([atom]))[0])
            if root not in found or root == atom:
                found[root] = why
        return found

    @property
    def size(self) -> int:
        return self._parent.size


def is_place(labels: Labels) -> bool:
    """Whether an axis is one of places alone."""
    return not labels.any()


def places(size: int) -> Labels:
    """The labels of such an axis."""
    return np.zeros(size, np.int64)
