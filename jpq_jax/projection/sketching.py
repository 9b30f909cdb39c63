"""From weights to the problem that `allocation.lagrangian` solves: one sketch for each leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jpq_jax.granularity import group_size
from jpq_jax.projection.view import (
    Reference,
    View,
    has_classes,
    has_groups,
    norms_of,
    reference_of,
    view_of,
)
from jpq_jax.sketch.classes import CLASSES, exponent_of_top, relative_importance
from jpq_jax.sketch.logarithmic import LogSketch, edges, log_sketch
from jpq_jax.sketch.priced import Leaf, tails_of
from jpq_jax.vocabulary import Treatment

Curvature = Sequence[jax.Array] | None
"""Of every compressed leaf, what an error of each weight costs; None for 1."""


class Sketched(NamedTuple):
    """All compressed leaves.

    Attributes:
      views: of each.
      references: stacked, [leaves].
      exponent: [leaves] int32, of the views' units, biased.
      leaves: stacked, [leaves, ...].
      scale: [leaves] float32, what an error of 1 in a view's unit weighs, by that of the heaviest leaf.
      octaves: [] int32, what it weighs there.
    """

    views: list[View]
    references: Reference
    exponent: jax.Array
    leaves: Leaf
    scale: jax.Array
    octaves: jax.Array


def curvature_of(curvature: Curvature, leaf: int) -> jax.Array | None:
    return None if curvature is None else curvature[leaf]


def sketched(
    weights: Sequence[jax.Array],
    treatments: Sequence[Treatment],
    curvature: Curvature,
    norms: Sequence[jax.Array] | None = None,
) -> Sketched:
    """weights: float32. norms: those of an earlier sketch, to be kept to."""
    views, references, sketches, costs, octaves = [], [], [], [], []
    norms = norms or [norms_of(w, t) for w, t in zip(weights, treatments, strict=True)]
    is_classed = any(has_classes(t, curvature is not None) for t in treatments)
    for i, (w, treatment) in enumerate(zip(weights, treatments, strict=True)):
        curved = curvature_of(curvature, i)
        reference = reference_of(w, treatment, norms[i], curved)
        view = view_of(w, treatment, norms[i], curved, reference)
        sketch = log_sketch(view.weights, view.kind)
        if is_classed and view.kind is None:
            sketch = _with_empty_classes(sketch)
        cost, octave = _cost(sketch, treatment, curved, reference)
        views.append(view)
        references.append(reference)
        sketches.append(sketch)
        costs.append(cost)
        octaves.append(octave)
    sketch = _stacked(sketches)
    pairs = [(w.shape, t.granularity) for w, t in zip(weights, treatments, strict=True)]
    leaves = Leaf(
        tails=jax.vmap(tails_of)(sketch, jnp.stack(costs)),
        size=jnp.array([w.size for w in weights], jnp.int32),
        cost=jnp.stack(costs),
        together=jnp.array([group_size(*pair) for pair in pairs], jnp.int32),
        whole=_flags([has_groups(t) for t in treatments]),
        uniform=_flags([t.grid == "uniform" for t in treatments]),
    )
    heaviest = jnp.max(jnp.stack(octaves))
    relative = jnp.maximum(jnp.stack(octaves) - heaviest, -126).astype(jnp.float32)
    return Sketched(
        views, _stacked(references), sketch.exponent, leaves, jnp.exp2(relative), heaviest
    )


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *each: jnp.stack(each), *trees)


def _flags(of_leaves: list[bool]) -> jax.Array | None:
    return jnp.array(of_leaves) if any(of_leaves) else None


def _with_empty_classes(sketch: LogSketch) -> LogSketch:
    counts = jnp.pad(sketch.counts, ((0, CLASSES - 1), (0, 0), (0, 0)))
    empty = jnp.broadcast_to(edges()[:-1], (CLASSES - 1, *sketch.mean.shape[1:]))
    return sketch._replace(counts=counts, mean=jnp.concatenate([sketch.mean, empty]))


def _cost(
    sketch: LogSketch, treatment: Treatment, curvature: jax.Array | None, reference: Reference
) -> tuple[jax.Array, jax.Array]:
    """[classes] float32, what a squared error in the view's unit costs; and what it is relative to: [] int32, in octaves."""
    own = 2 * (sketch.exponent - 127)
    classes = len(sketch.counts)
    of_leaf = 2 * (reference.exponent - 127)
    of_top = exponent_of_top(reference.top) - 127
    weighted = treatment.scale == "channel" or curvature is not None
    if not weighted:
        return jnp.ones(classes, jnp.float32), own
    importance = relative_importance(reference.top)
    if not has_groups(treatment):
        return importance, own + of_top + (of_leaf if treatment.scale == "channel" else 0)
    # A class's importance is of its groups' squares, curvature and norms in it: its weights share that out.
    counts = sketch.counts.astype(jnp.float32)
    number = jnp.sum(counts, axis=(1, 2))
    squares = jnp.sum(counts * sketch.mean**2, axis=(1, 2))
    return jnp.where(number > 0, importance * number / jnp.where(number > 0, squares, 1), 1), (
        of_leaf + of_top
    )
