"""A leaf as the joint projection looks at it: in units of its channels' scales, and by classes of its weights."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jpq_jax.granularity import Block, Channels, NofM, group_mean, group_shape, largest_of, of_group
from jpq_jax.sharding import lying_like, replicated
from jpq_jax.sketch.classes import class_of, top_of
from jpq_jax.sketch.logarithmic import exponent_of, unit_of
from jpq_jax.vocabulary import Treatment

_LEAST_NORM = 2.0**-100


class View(NamedTuple):
    """Attributes:
    weights: [...] float32, the leaf's over its norms; 0 where an N:M pattern rules them out.
    norms: float32, of a shape that broadcasts to theirs.
    kind: [...] uint8, the weights' classes; None if they are all of one.
    group_importance: [...] float32, that of each weight's group; None if there are no groups.
    """

    weights: jax.Array
    norms: jax.Array
    kind: jax.Array | None
    group_importance: jax.Array | None


def has_groups(treatment: Treatment) -> bool:
    return isinstance(treatment.granularity, Block | Channels)


def has_classes(treatment: Treatment, curved: bool) -> bool:
    """Whether the leaf's weights are told apart by groups, or by what an error costs."""
    return has_groups(treatment) or treatment.scale == "channel" or curved


def unit_norms(shape: tuple[int, ...], treatment: Treatment) -> jax.Array:
    """1 for each output channel, [1, ..., channels], or for a leaf of one scale, [1, ...]."""
    of_channels = treatment.scale == "channel" and bool(shape)
    ones = (1,) * len(shape)
    return jnp.ones(ones[:-1] + shape[-1:] if of_channels else ones, jnp.float32)


def norms_of(w: jax.Array, treatment: Treatment) -> jax.Array:
    """The root mean square of each output channel, like `unit_norms`; 1 for a leaf of one scale, or for a channel of
    zeros, or so small that what is divided by it might overflow.
    """
    if treatment.scale == "leaf" or not w.ndim:
        return unit_norms(w.shape, treatment)
    return _norms(w)


@replicated
def _norms(w: jax.Array) -> jax.Array:
    axes = tuple(range(w.ndim - 1))
    largest = jnp.max(jnp.abs(w), axis=axes, keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    norms = unit * jnp.sqrt(jnp.mean((w / unit) ** 2, axis=axes, keepdims=True))
    return jnp.where(norms >= _LEAST_NORM, norms, 1)


class Reference(NamedTuple):
    """What classes are counted from; a plan's is kept for the assignments by it, so that classes do not drift.

    Attributes:
      exponent: [] int32, of the largest weight's power of two, biased.
      top: [] int32, the highest class there was.
    """

    exponent: jax.Array
    top: jax.Array


def _importance(
    w: jax.Array,
    treatment: Treatment,
    norms: jax.Array,
    curvature: jax.Array | None,
    exponent: jax.Array,
) -> jax.Array:
    """By what classes are told apart, in units of `exponent`: a group's mean square, else what an error costs.

    [...], or a shape that broadcasts to it.
    """
    unit = unit_of(exponent)
    cost = jnp.ones((1,) * w.ndim, jnp.float32) if curvature is None else curvature
    group = group_shape(w.shape, treatment.granularity)
    if group is None:
        return cost if treatment.scale == "leaf" else cost * (norms / unit) ** 2

    def of_groups(w: jax.Array, cost: jax.Array, unit: jax.Array) -> jax.Array:
        return of_group(group_mean(cost * (w / unit) ** 2, group), group)

    return lying_like(w, of_groups)(w, cost, unit)


def reference_of(
    w: jax.Array, treatment: Treatment, norms: jax.Array, curvature: jax.Array | None
) -> Reference:
    """Of a leaf as it is now."""
    if not has_classes(treatment, curvature is not None):
        return Reference(jnp.int32(127), jnp.int32(2 * 127))
    exponent = replicated(exponent_of)(w)
    importance = _importance(w, treatment, norms, curvature, exponent)
    return Reference(exponent, replicated(top_of)(importance))


def view_of(
    w: jax.Array,
    treatment: Treatment,
    norms: jax.Array,
    curvature: jax.Array | None,
    reference: Reference,
) -> View:
    """The leaf as it is sketched and assigned. w: [...] float32."""
    kind = importance = None
    if has_classes(treatment, curvature is not None):
        importance = _importance(w, treatment, norms, curvature, reference.exponent)
        kind = jnp.broadcast_to(class_of(importance, reference.top), w.shape)
    weights = w if treatment.scale == "leaf" else w / norms
    if isinstance(treatment.granularity, NofM):
        weights = jnp.where(_chosen(w, treatment.granularity, curvature), weights, 0)
    view = View(weights, norms, kind, importance if has_groups(treatment) else None)
    # Computed once: where they are used again, in another place, they might round otherwise.
    return view if kind is None else lax.optimization_barrier(view)


def _chosen(w: jax.Array, pattern: NofM, curvature: jax.Array | None) -> jax.Array:
    def largest(size: jax.Array) -> jax.Array:
        return largest_of(size, pattern)

    size = jnp.abs(w) if curvature is None else jnp.abs(w) * jnp.sqrt(curvature)
    return lying_like(w, largest)(size)
