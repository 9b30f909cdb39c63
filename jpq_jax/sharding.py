"""Where results lie, under explicit sharding: the compiler places what happens inside, and gathers nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import jax
from jax.sharding import PartitionSpec

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def replicated(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A function of sharded arrays whose small result every device has whole."""
    placed = jax.sharding.auto_axes(function, out_sharding=PartitionSpec())
    return cast(Callable[_Arguments, _Result], placed)


def lying_like(
    w: jax.Array, function: Callable[_Arguments, _Result]
) -> Callable[_Arguments, _Result]:
    """A function whose result has the shape of `w`, and its sharding."""
    placed = jax.sharding.auto_axes(function, out_sharding=jax.typeof(w).sharding.spec)
    return cast(Callable[_Arguments, _Result], placed)
