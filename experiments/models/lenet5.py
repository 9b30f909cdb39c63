"""LeNet-5 as in Caffe and in the compression papers: 20-50-500-10, 430,500 counted weights; and narrower ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.convolution import convolved_and_pooled

Units = tuple[int, int, int]
"""Channels of the two convolutions, and units of the hidden layer."""

UNITS: Units = (20, 50, 500)
_MAP = 16  # places of conv2's map, after the second pool
_LAYERS = ("conv1", "conv2", "fc1", "fc2")


class LeNet5(nnx.Module):
    """conv 5x5x20, pool, conv 5x5x50, pool, dense 500, ReLU, dense 10.

    Args:
      units: 20, 50 and 500, or others.
      relu: ReLUs after the convolutions too. The papers' model has none there.
      rngs: for the initial weights.
    """

    def __init__(self, *, units: Units = UNITS, relu: bool, rngs: nnx.Rngs):
        first, second, hidden = units
        self.conv1 = nnx.Conv(1, first, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (5, 5), padding="VALID", rngs=rngs)
        self.fc1 = nnx.Linear(_MAP * second, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, 10, rngs=rngs)
        self.relu = relu
        self.convolved_and_pooled = convolved_and_pooled

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 28, 28, 1] float32, normalized; returns [N, 10] logits."""
        x = images
        for convolution in (self.conv1, self.conv2):
            kernel, bias = convolution.kernel[...], convolution.bias[...]  # pyright: ignore[reportOptionalSubscript]
            x = self.convolved_and_pooled(x, kernel, bias)
            x = nnx.relu(x) if self.relu else x
        x = x.reshape(x.shape[0], -1)
        return self.fc2(nnx.relu(self.fc1(x)))


def narrowed(params: Any, units: Units) -> Any:
    """The params of the narrower net that keeps the strongest units.

    A unit's strength is the norm of what comes in times the norm of what goes out.
    """
    for layer, after, keep in zip(_LAYERS, _LAYERS[1:], units, strict=False):
        kernel, bias, out = params[layer]["kernel"], params[layer]["bias"], params[after]["kernel"]
        spread = (*out.shape[:-2], -1, kernel.shape[-1], out.shape[-1])
        out = out.reshape(spread)
        squares = jnp.sum(out**2, axis=tuple(i for i in range(out.ndim) if i != out.ndim - 2))
        squares *= jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1)))
        kept = jnp.sort(jnp.argsort(-squares)[:keep])
        narrow = out[..., kept, :].reshape(*params[after]["kernel"].shape[:-2], -1, out.shape[-1])
        params = params | {
            layer: {"kernel": kernel[..., kept], "bias": bias[kept]},
            after: params[after] | {"kernel": narrow},
        }
    return params
