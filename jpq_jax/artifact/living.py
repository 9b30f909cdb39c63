"""The elements of a leaf that are on no dead line, as a matrix in slabs of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.activity import Activity, living_rows


def slabs(rows: int, columns: int, size: int) -> list[tuple[int, int]]:
    """First and last row of each slab of a matrix, of that many elements at most, or of one row."""
    if not columns:
        return []
    step = max(size // columns, 1)
    return [(at, min(at + step, rows)) for at in range(0, rows, step)]


class Living:
    """The elements on living lines as a matrix, slab by slab of its rows: a view of all."""

    def __init__(self, array: NDArray[Any], activity: Activity) -> None:
        """array: of one axis or more."""
        self.rows = np.flatnonzero(living_rows(activity))
        self.columns = np.flatnonzero(activity.alive[-1])
        self._matrix = array.reshape(-1, array.shape[-1])

    def slabs(self, size: int) -> list[tuple[int, int]]:
        return slabs(self.rows.size, self.columns.size, size)

    def get(self, start: int, end: int) -> NDArray[Any]:
        """In one row."""
        return self._matrix[self._slab(start, end)].ravel()

    def set(self, start: int, end: int, to: NDArray[Any]) -> None:
        self._matrix[self._slab(start, end)] = to.reshape(end - start, -1)

    def places(self, start: int, end: int) -> NDArray[np.int64]:
        """Of the slab's elements in the whole leaf in C order."""
        rows = self.rows[start:end].astype(np.int64) * self._matrix.shape[1]
        return (rows[:, None] + self.columns[None, :]).ravel()

    def _slab(self, start: int, end: int) -> tuple[Any, ...]:
        """By slices if no line between is dead: far faster than by indices."""
        lines = self.rows[start:end], self.columns
        if all(line.size and line[-1] - line[0] == line.size - 1 for line in lines):
            return tuple(slice(line[0], line[-1] + 1) for line in lines)
        return np.ix_(*lines)
