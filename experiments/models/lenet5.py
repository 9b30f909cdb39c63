"""LeNet-5 as in Caffe and in the compression papers: 20-50-500-10, 430,500 counted weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.convolution import valid_convolution


class LeNet5(nnx.Module):
    """conv 5x5x20, pool, conv 5x5x50, pool, dense 500, ReLU, dense 10.

    Args:
      relu: ReLUs after the convolutions too. The papers' model has none there.
      rngs: for the initial weights.
    """

    def __init__(self, *, relu: bool, rngs: nnx.Rngs):
        convolution = {"padding": "VALID", "conv_general_dilated": valid_convolution, "rngs": rngs}
        self.conv1 = nnx.Conv(1, 20, (5, 5), **convolution)
        self.conv2 = nnx.Conv(20, 50, (5, 5), **convolution)
        self.fc1 = nnx.Linear(800, 500, rngs=rngs)
        self.fc2 = nnx.Linear(500, 10, rngs=rngs)
        self.relu = relu

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 28, 28, 1] float32, normalized; returns [N, 10] logits."""
        x = images
        for convolution in (self.conv1, self.conv2):
            x = _max_pool(convolution(x))
            x = nnx.relu(x) if self.relu else x
        x = x.reshape(x.shape[0], -1)
        return self.fc2(nnx.relu(self.fc1(x)))


def _max_pool(x: jax.Array) -> jax.Array:
    # Twice as fast as reduce_window on CPUs, forward and backward.
    n, h, w, c = x.shape
    return jnp.max(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))
