"""What is known of an array whatever the model's input; an axis along which nothing changes is kept as one index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


class Known(NamedTuple):
    """Attributes:
    shape: of the array.
    is_known: bool, of as many axes, each of its length or of 1.
    value: of the same shape; anything where it is not known.
    """

    shape: tuple[int, ...]
    is_known: NDArray[np.bool_]
    value: NDArray[Any]

    @property
    def whole(self) -> bool:
        return bool(self.is_known.all())

    def full(self, axes: Sequence[int]) -> Known:
        """With these axes at their length."""
        return self.to(
            [self.shape[i] if i in axes else size for i, size in enumerate(self.is_known.shape)]
        )

    def to(self, shape: Sequence[int]) -> Known:
        return self._replace(
            is_known=np.broadcast_to(self.is_known, shape), value=np.broadcast_to(self.value, shape)
        )

    @property
    def short(self) -> Known:
        """With one index along axes on which nothing changes."""
        known, value = self.is_known, self.value
        for axis, size in enumerate(value.shape):
            first = [x.take([0], axis) for x in (known, value)] if size > 1 else []
            if first and (known == first[0]).all() and _same(value, first[1]).all():
                known, value = first
        return self._replace(is_known=known, value=value)

    @property
    def is_broken(self) -> NDArray[np.bool_]:
        """Where it is infinite or no number, so that not even 0 times it is 0."""
        if not jnp.issubdtype(self.value.dtype, jnp.inexact):
            return np.zeros_like(self.is_known)
        return self.is_known & ~np.isfinite(self.value)

    @property
    def is_zero(self) -> NDArray[np.bool_]:
        return self.is_known & (self.value == 0)


def _same(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Element by element; what is no number is the same as such."""
    return (a == b) | ((a != a) & (b != b))


def unknown(shape: tuple[int, ...]) -> Known:
    ones = (1,) * len(shape)
    return Known(shape, np.zeros(ones, bool), np.zeros(ones, np.float32))


def nothing(shape: tuple[int, ...]) -> Known:
    """Of an array without elements."""
    ones = (1,) * len(shape)
    return Known(shape, np.ones(ones, bool), np.zeros(ones, np.float32))


def given(value: Any) -> Known:
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):  # a key of random numbers
        return unknown(jnp.shape(value))
    array = np.asarray(value)
    return Known(array.shape, np.ones(array.shape, bool), array)
