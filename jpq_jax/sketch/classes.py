"""Weights that are alike in what an error costs, or in how their group stands: classes of half an octave each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

CLASSES = 16
_REST = 22  # mantissa bits that a class does not look at: [1, 1.5) and [1.5, 2) are apart


_LEAST = 48  # the lowest half octave that `top` may be: squares of units, and their products, must stay normal


def top_of(importance: jax.Array) -> jax.Array:
    """[] int32, the number of the highest half octave there is. importance: float32, at least 0."""
    return jnp.maximum(_step(jnp.max(importance, initial=0)), _LEAST)


def class_of(importance: jax.Array, top: jax.Array) -> jax.Array:
    """0 .. CLASSES - 1, uint8: half octave `top` and all above are the last, what is far below is the first."""
    below = _step(importance) - (top - (CLASSES - 1))
    return jnp.clip(below, 0, CLASSES - 1).astype(jnp.uint8)


def exponent_of_top(top: jax.Array) -> jax.Array:
    """Of the power of two that `relative_importance` is relative to; biased."""
    return top >> 1


def relative_importance(top: jax.Array) -> jax.Array:
    """[CLASSES] float32, the middle of each class."""
    steps = 2 * 127 + (top & 1) - (CLASSES - 1) + jnp.arange(CLASSES, dtype=jnp.int32)
    return lax.bitcast_convert_type((steps << _REST) + (1 << (_REST - 1)), jnp.float32)


def _step(importance: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(importance.astype(jnp.float32), jnp.int32) >> _REST
