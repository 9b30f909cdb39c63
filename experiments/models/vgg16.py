"""VGG-16 (Simonyan and Zisserman, 2014, arXiv 1409.1556): for ImageNet 138,344,128 counted weights, for CIFAR-10 14,715,584."""

from __future__ import annotations

import jax
from flax import nnx

from experiments.models.alexnet import dense_layers

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _convolutions(rngs: nnx.Rngs) -> nnx.List:
    widths = [width for group in _WIDTHS for width in group]
    pairs = zip([3, *widths], widths, strict=False)
    return nnx.List([nnx.Conv(*pair, (3, 3), padding=1, rngs=rngs) for pair in pairs])


def _ends() -> list[bool]:
    """Of each convolution, whether a pool comes after it."""
    return [place == len(group) - 1 for group in _WIDTHS for place in range(len(group))]


class VGG16(nnx.Module):
    """Thirteen 3x3 convolutions in five groups, each ended by a pool, then dense 4096, 4096 and 1000.

    Dropout of a half before the first two dense layers stands for theirs where a key is given.

    Args:
      rngs: for the initial weights.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.convolutions = _convolutions(rngs)
        self.fc1 = nnx.Linear(7 * 7 * 512, 4096, rngs=rngs)
        self.fc2 = nnx.Linear(4096, 4096, rngs=rngs)
        self.fc3 = nnx.Linear(4096, 1000, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """images: [N, 224, 224, 3] float32, normalized; returns [N, 1000] logits."""
        x = images
        for convolution, is_end in zip(self.convolutions, _ends(), strict=True):
            x = nnx.relu(convolution(x))
            x = nnx.max_pool(x, (2, 2), (2, 2)) if is_end else x
        return dense_layers((self.fc1, self.fc2, self.fc3), x.reshape(len(x), -1), key)


class VGG16ForCifar10(nnx.Module):
    """The same convolutions, each with batch norm, and one dense layer.

    Args:
      rngs: for the initial weights.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.convolutions = _convolutions(rngs)
        widths = [width for group in _WIDTHS for width in group]
        self.norms = nnx.List(
            [nnx.BatchNorm(n, momentum=0.9, epsilon=1e-5, rngs=rngs) for n in widths]
        )
        self.linear = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 32, 32, 3] float32, normalized; returns [N, 10] logits."""
        x = images
        for convolution, norm, is_end in zip(self.convolutions, self.norms, _ends(), strict=True):
            x = nnx.relu(norm(convolution(x)))
            x = nnx.max_pool(x, (2, 2), (2, 2)) if is_end else x
        return self.linear(x.reshape(len(x), -1))
