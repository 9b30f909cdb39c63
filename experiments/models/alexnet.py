"""AlexNet for ImageNet in one column (Krizhevsky, 2014, arXiv 1404.5997), as torchvision has it: 61,090,496 counted weights."""

from __future__ import annotations

import jax
from flax import nnx


class AlexNet(nnx.Module):
    """conv 11x11x64 by 4, pool, conv 5x5x192, pool, conv 3x3 of 384, 256 and 256, pool, dense 4096, 4096 and 1000.

    Dropout of a half before the first two dense layers stands for theirs where a key is given.

    Args:
      rngs: for the initial weights.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 64, (11, 11), strides=4, padding=2, rngs=rngs)
        self.conv2 = nnx.Conv(64, 192, (5, 5), padding=2, rngs=rngs)
        self.conv3 = nnx.Conv(192, 384, (3, 3), padding=1, rngs=rngs)
        self.conv4 = nnx.Conv(384, 256, (3, 3), padding=1, rngs=rngs)
        self.conv5 = nnx.Conv(256, 256, (3, 3), padding=1, rngs=rngs)
        self.fc1 = nnx.Linear(6 * 6 * 256, 4096, rngs=rngs)
        self.fc2 = nnx.Linear(4096, 4096, rngs=rngs)
        self.fc3 = nnx.Linear(4096, 1000, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """images: [N, 224, 224, 3] float32, normalized; returns [N, 1000] logits."""
        x = nnx.max_pool(nnx.relu(self.conv1(images)), (3, 3), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (3, 3), (2, 2))
        x = nnx.relu(self.conv4(nnx.relu(self.conv3(x))))
        x = nnx.max_pool(nnx.relu(self.conv5(x)), (3, 3), (2, 2))
        return dense_layers((self.fc1, self.fc2, self.fc3), x.reshape(len(x), -1), key)


def dense_layers(
    layers: tuple[nnx.Linear, nnx.Linear, nnx.Linear], x: jax.Array, key: jax.Array | None
) -> jax.Array:
    """With ReLUs between them, and dropout of a half before the first two where a key is given."""
    first, second, last = layers
    keys = (None, None) if key is None else jax.random.split(key)
    x = nnx.relu(first(_dropped(x, keys[0])))
    x = nnx.relu(second(_dropped(x, keys[1])))
    return last(x)


def _dropped(x: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is None:
        return x
    return 2 * x * jax.random.bernoulli(key, shape=x.shape).astype(x.dtype)
