"""Convolutions in other forms than XLA's own, where these are what the platform is fast at."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PART = 16  # images; of 4 to 32, about as fast as any


def convolved_and_pooled(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The maximum over 2 x 2 places of a stride-1 convolution without padding.

    On CPUs XLA is many times slower at a convolution inside a loop, and at one of a single channel
    (`experiments/benchmarks/convolution.py`). There the four places that are pooled are channels of one convolution over
    blocks of 2 x 2 pixels, whose patches are laid out and multiplied; elsewhere it is the usual operations.

    Args:
      x: [N, H, W, I], H and W even.
      kernel: [h, w, I, O], h and w odd.
      bias: [O].

    Returns:
      [N, (H - h + 1) / 2, (W - w + 1) / 2, O].
    """
    return lax.platform_dependent(x, kernel, bias, cpu=_by_blocks, default=as_usual)


def as_usual(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Likewise, by XLA's own convolution."""
    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_LAYOUT)
    n, h, w, outputs = y.shape
    pooled = jnp.max(y.reshape(n, h // 2, 2, w // 2, 2, outputs), axis=(2, 4))
    return pooled + bias[None, None, None]


def convolved(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, the gradient of whose kernel is, on CPUs, the sum of those of a few images each.

    XLA's own for a batch of 128 is two to three times as slow as one such part after the other
    (`experiments/benchmarks/convolution.py`): what it lays out for the product is too large for the caches.

    Args:
      x: [N, ...], images first.
      kernel: as `lax.conv_general_dilated` takes it, and all that follows.
    """
    usual = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )

    @jax.custom_vjp
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return usual(x, kernel)

    def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: usual(x, kernel), kernel)(gradient)[0]

    def by_parts(x: jax.Array, gradient: jax.Array) -> jax.Array:
        parts = max(len(x) // _PART, 1)
        pairs = zip(jnp.array_split(x, parts), jnp.array_split(gradient, parts), strict=True)
        return sum((of_kernel(*pair) for pair in pairs), jnp.zeros_like(kernel))

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        return usual(x, kernel), (x, kernel)

    def backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = saved
        of_x = jax.linear_transpose(lambda x: usual(x, kernel), x)(gradient)[0]
        return of_x, lax.platform_dependent(x, gradient, cpu=by_parts, default=of_kernel)

    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


def _by_blocks(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    outputs = kernel.shape[-1]
    wide = _product_of_patches(_blocks(x), _kernel_of_blocks(kernel))
    return jnp.max(wide.reshape(*wide.shape[:3], 4, outputs), axis=3) + bias[None, None, None]


def _blocks(x: jax.Array) -> jax.Array:
    """[N, H/2, W/2, 4 I] from [N, H, W, I]."""
    n, h, w, inputs = x.shape
    apart = x.reshape(n, h // 2, 2, w // 2, 2, inputs).transpose(0, 1, 3, 2, 4, 5)
    return apart.reshape(n, h // 2, w // 2, 4 * inputs)


def _kernel_of_blocks(kernel: jax.Array) -> jax.Array:
    """[(h+1)/2, (w+1)/2, 4 I, 4 O]: the kernel at each of the four places in the block that it begins in."""
    h, w, inputs, outputs = kernel.shape
    places = [(i, j) for i in (0, 1) for j in (0, 1)]
    placed = [jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in places]
    h, w = (h + 1) // 2, (w + 1) // 2
    apart = jnp.stack(placed, axis=3).reshape(h, 2, w, 2, inputs, 4, outputs)
    return apart.transpose(0, 2, 1, 3, 4, 5, 6).reshape(h, w, 4 * inputs, 4 * outputs)


def _product_of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    h, w, inputs, outputs = kernel.shape
    count, height, width = x.shape[0], x.shape[1] - h + 1, x.shape[2] - w + 1
    shifted = [x[:, i : i + height, j : j + width] for i in range(h) for j in range(w)]
    patches = jnp.concatenate(shifted, axis=3).reshape(-1, h * w * inputs)
    product = patches @ kernel.reshape(-1, outputs)
    return product.reshape(count, height, width, outputs)
