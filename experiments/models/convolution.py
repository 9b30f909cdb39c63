"""Convolution as one matrix product, where that is what the platform is fast at."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def valid_convolution(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """Stride-1 convolution without padding; takes the place of `lax.conv_general_dilated` in `nnx.Conv`.

    On CPUs XLA is many times slower at a convolution inside a loop (`experiments/benchmarks/convolution.py`), so that
    there the patches are laid out and multiplied; elsewhere it is the usual operation.

    Args:
      x: [N, H, W, I].
      kernel: [h, w, I, O].

    Returns:
      [N, H - h + 1, W - w + 1, O].
    """

    def usual(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, *args, **kwargs)

    return lax.platform_dependent(x, kernel, cpu=_by_patches, default=usual)


def _by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    h, w, inputs, outputs = kernel.shape
    count, height, width = x.shape[0], x.shape[1] - h + 1, x.shape[2] - w + 1
    shifted = [x[:, i : i + height, j : j + width] for i in range(h) for j in range(w)]
    patches = jnp.concatenate(shifted, axis=3).reshape(-1, h * w * inputs)
    product = patches @ kernel.reshape(-1, outputs)
    return product.reshape(count, height, width, outputs)
