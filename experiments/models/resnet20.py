"""ResNet-20 for CIFAR-10 (He et al., 2015, arXiv 1512.03385), with parameter-free shortcuts: 268,336 counted weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.convolution import convolved

_WIDTHS = (16, 32, 64)
_BLOCKS = 3  # per width

_Convolution = functools.partial(
    nnx.Conv, kernel_size=(3, 3), use_bias=False, padding=1, conv_general_dilated=convolved
)
_Norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


class Block(nnx.Module):
    """Two convolutions and what they are added to.

    Args:
      inputs: channels that come in.
      outputs: channels that go out; more of them, and the image is halved.
      rngs: for the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.stride = 1 if inputs == outputs else 2
        self.more = outputs - inputs
        self.conv1 = _Convolution(inputs, outputs, strides=self.stride, rngs=rngs)
        self.bn1 = _Norm(outputs, rngs=rngs)
        self.conv2 = _Convolution(outputs, outputs, rngs=rngs)
        self.bn2 = _Norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + self._shortcut(x))

    def _shortcut(self, x: jax.Array) -> jax.Array:
        """Option A of the paper: every other pixel, and zeros in the new channels."""
        side = self.more // 2
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (side, self.more - side)))


class ResNet20(nnx.Module):
    """conv 3x3x16, three blocks each of 16, 32 and 64 channels, mean over the image, dense 10.

    Args:
      rngs: for the initial weights.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = _Convolution(3, _WIDTHS[0], rngs=rngs)
        self.bn1 = _Norm(_WIDTHS[0], rngs=rngs)
        widths = [width for width in _WIDTHS for _ in range(_BLOCKS)]
        pairs = zip([_WIDTHS[0], *widths], widths, strict=False)
        self.blocks = nnx.List([Block(*pair, rngs=rngs) for pair in pairs])
        self.linear = nnx.Linear(_WIDTHS[-1], 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 32, 32, 3] float32, normalized; returns [N, 10] logits."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        for block in self.blocks:
            x = block(x)
        return self.linear(jnp.mean(x, axis=(1, 2)))
