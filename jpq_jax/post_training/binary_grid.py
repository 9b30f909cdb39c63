"""Rounding to multiples of a power of two: the way from 8 bits a weight to bit-exact.

Floats are such multiples themselves, each down to its own last digit. So where the step falls below that of a weight, the weight
is kept to the bit, and the finer the step, the more of them are. Between two powers of two some runs of weights have the one and the others
the other, so that size and error change gradually.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jpq_jax.artifact.lossless.floats import run_length

_SLAB = 2**17  # weights that are rounded together


def rounded_to_binary_grid(weights: NDArray[Any], step: float) -> NDArray[Any]:
    """The nearest multiples of powers of two around the step, in the weights' own dtype.

    Args:
      weights: any shape, finite floats.
      step: positive; a power of two for all weights, else the share of runs with the larger step is that of its logarithm.
    """
    exponent = math.floor(math.log2(step))
    flat = weights.reshape(-1)
    run = run_length(flat.size)
    coarse = run * round((math.log2(step) - exponent) * -(-flat.size // run))
    found = np.empty(flat.shape, flat.dtype)
    for start in range(0, flat.size, _SLAB):
        end = min(start + _SLAB, flat.size)
        exponents = exponent + (np.arange(start, end) < coarse)
        found[start:end] = _rounded(flat[start:end], exponents)
    return found.reshape(weights.shape)


def _rounded(weights: NDArray[Any], exponents: NDArray[np.int64]) -> NDArray[Any]:
    most = float(jnp.finfo(weights.dtype).max)
    scaled = np.ldexp(weights.astype(np.float64), -exponents)
    nearest = np.ldexp(np.rint(scaled), exponents)
    toward_zero = np.ldexp(np.trunc(scaled), exponents)
    values = np.where(np.abs(nearest) <= most, nearest, toward_zero)
    return (values + 0.0).astype(weights.dtype)  # no negative zeros
