"""What functions of JAX, Flax and Equinox let go of, between two layers; the same in every version of JAX.

Three of the eight channels of the first layer say nothing: ZERO is 0 whatever the input, CONSTANT is 0.25, and for UNHEARD the second
layer has no weight. A row of the table tells which of them go when a function stands between the layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jpq_jax

ZERO, CONSTANT, UNHEARD = 1, 4, 6
ALL = (ZERO, CONSTANT, UNHEARD)
NONE = ()
WITHOUT_ZERO = (CONSTANT, UNHEARD)  # the function makes an infinity of it, or no number
ROWS, SEQUENCE, IMAGE = (3,), (2, 6), (2, 4, 4)


class Row(NamedTuple):
    """Attributes:
    function: of what the first layer gives, [..., 8].
    goes: channels of the first layer.
    places: the axes before the channels.
    unheard: what the function makes of UNHEARD, if that is not one output at the same place.
    """

    function: Callable[[jax.Array], jax.Array]
    goes: tuple[int, ...] = ALL
    places: tuple[int, ...] = ROWS
    unheard: tuple[int, ...] = (UNHEARD,)


def network(params: Any, x: jax.Array, function: Any) -> jax.Array:
    hidden = function(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def layers(row: Row) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Params and an input; what comes out of the first layer lies between 0 and 1."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 1, (*row.places, 5)).astype(np.float32)
    hidden = jax.ShapeDtypeStruct((*row.places, 8), jnp.float32)
    given = jax.eval_shape(row.function, hidden).shape[-1]
    params = {
        "w1": rng.uniform(0.05, 0.15, (5, 8)),
        "b1": rng.uniform(0, 0.2, 8),
        "w2": rng.normal(size=(given, 3)),
        "b2": rng.normal(size=3),
    }
    params["w1"][:, [ZERO, CONSTANT]] = 0
    params["b1"][[ZERO, CONSTANT]] = 0, 0.25
    params["w2"][list(row.unheard)] = 0
    return {name: leaf.astype(np.float32) for name, leaf in params.items()}, x
