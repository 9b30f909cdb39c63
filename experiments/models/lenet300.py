"""LeNet-300-100, three dense layers for MNIST: 266,200 counted weights."""

from __future__ import annotations

import jax
from flax import nnx


class LeNet300(nnx.Module):
    """dense 300, ReLU, dense 100, ReLU, dense 10.

    Args:
      rngs: for the initial weights.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(784, 300, rngs=rngs)
        self.fc2 = nnx.Linear(300, 100, rngs=rngs)
        self.fc3 = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 28, 28, 1] float32, normalized; returns [N, 10] logits."""
        x = images.reshape(len(images), -1)
        return self.fc3(nnx.relu(self.fc2(nnx.relu(self.fc1(x)))))
