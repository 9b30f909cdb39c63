"""Leaves of one shape as one: a network's many norms would each be a program of its own, and take minutes to compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jpq_jax.sharding import lying_like, replicated

OfLeaves: TypeAlias = Sequence[Any] | jax.Array

_LARGE = 2**20  # weights of a leaf that is not worth a copy


def each_replicated(
    function: Callable[..., Any], leaves: Sequence[jax.Array], *others: OfLeaves
) -> list[Any]:
    """function(leaf, *others) for each leaf; small results, which every device has whole."""
    return _each(lambda _, called: replicated(called), function, leaves, others)


def each_lying_like(
    function: Callable[..., Any], leaves: Sequence[jax.Array], *others: OfLeaves
) -> list[Any]:
    """The same with results of the leaves' shapes and shardings."""
    return _each(lying_like, function, leaves, others)


def _each(
    placed: Callable[[jax.Array, Callable[..., Any]], Callable[..., Any]],
    function: Callable[..., Any],
    leaves: Sequence[jax.Array],
    others: Sequence[OfLeaves],
) -> list[Any]:
    arguments = list(zip(leaves, *others, strict=True))
    results: list[Any] = [None] * len(leaves)
    for members in _groups(leaves):
        if len(members) == 1:
            of_one = arguments[members[0]]
            results[members[0]] = placed(of_one[0], function)(*of_one)
            continue
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *(arguments[i] for i in members))
        together = placed(stacked[0], jax.vmap(function))(*stacked)
        for place, i in enumerate(members):
            results[i] = jax.tree.map(lambda array, place=place: array[place], together)
    return results


def _groups(leaves: Sequence[jax.Array]) -> list[list[int]]:
    """The places of leaves that are alike in shape, dtype and sharding; a large one is by itself."""
    found: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        found.setdefault(i if leaf.size > _LARGE else jax.typeof(leaf), []).append(i)
    return list(found.values())
