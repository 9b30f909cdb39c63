"""Where results lie, under explicit sharding: the compiler places what happens inside, and gathers nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
from jax.sharding import PartitionSpec

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def replicated(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A function of sharded arrays whose small result every device has whole."""
    return _placed(function, PartitionSpec())


def lying_like(
    w: jax.Array, function: Callable[_Arguments, _Result]
) -> Callable[_Arguments, _Result]:
    """A function whose result has the shape of `w`, and its sharding."""
    return _placed(function, jax.typeof(w).sharding.spec)


def _placed(
    function: Callable[_Arguments, _Result], spec: PartitionSpec
) -> Callable[_Arguments, _Result]:
    """Placed by the compiler on all axes of the mesh in force but the manual ones, those of `shard_map` and `pmap`: there a
    function sees its device's part alone, and there is nothing to place.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        mesh = jax.sharding.get_abstract_mesh()
        axes = tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)
        if mesh.manual_axes and not axes:
            return function(*args, **kwargs)
        within = axes if mesh.manual_axes else None
        placed = jax.sharding.auto_axes(function, axes=within, out_sharding=spec)
        return cast(Callable[_Arguments, _Result], placed)(*args, **kwargs)

    return call


def varying_axes(leaf: Any) -> frozenset[str]:
    """The manual axes along which a leaf differs from device to device, as far as its type says so: not within `pmap`, nor with
    `check_vma=False`.
    """
    kind = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return frozenset() if kind is None else frozenset(kind.varying)
