"""The pull of ADMM on the weights W toward Z - U: rho / 2 |W - Z + U|^2, as a proximal step or as a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import jax

Leaves = Sequence[jax.Array]


def proximal_step(
    weights: Leaves, steps: Leaves, target: Leaves, dual: Leaves, pull: jax.Array
) -> list[jax.Array]:
    """The weights after a step and (W + pull (Z - U)) / (1 + pull). pull: learning rate x rho."""
    parts = zip(weights, steps, target, dual, strict=True)
    return [(w + step + pull * (z - u)) / (1 + pull) for w, step, z, u in parts]


def gradient_penalty(
    gradients: Leaves, weights: Leaves, target: Leaves, dual: Leaves, strength: jax.Array
) -> list[jax.Array]:
    """The gradients and rho (W - Z + U), in their own dtypes. strength: rho."""
    parts = zip(gradients, weights, target, dual, strict=True)
    return [g + (strength * (w - z + u)).astype(g.dtype) for g, w, z, u in parts]
