"""Which of several codes is the shortest for an array: by trial, of a large one on its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from jpq_jax.artifact.stream import Writer

_TRIAL = 2**18  # elements
_BEGINNING = 2**16

Way = Callable[[NDArray[Any]], Writer]


def shortest(array: NDArray[Any], ways: Sequence[Way]) -> Writer:
    """What the best of them makes of the whole array."""
    if len(ways) == 1:
        return ways[0](array)
    if array.size <= _TRIAL:
        return min((way(array) for way in ways), key=lambda writer: writer.bits)
    some = beginning(array)
    return min(ways, key=lambda way: way(some).bits)(array)


def beginning(array: NDArray[Any]) -> NDArray[Any]:
    """Some rows of a large array, or all of a small one; a view."""
    if array.size <= _TRIAL:
        return array
    matrix = array.reshape(-1, array.shape[-1])
    return matrix[: max(_BEGINNING // matrix.shape[1], 1), :_BEGINNING]
