"""ResNet-50 (He et al., 2015, arXiv 1512.03385), strides in the 3x3 convolutions as torchvision has it.

For ImageNet 25,502,912 counted weights; for CIFAR-10, with a first convolution of 3x3 and no pool, 23,467,712.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width of the 3x3 convolutions, and blocks
_EXPANSION = 4  # of the width, by a block's last convolution

_Convolution = functools.partial(nnx.Conv, use_bias=False)
_Norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1, added to what came in, or to a 1x1 convolution of it where the shapes differ.

    Args:
      inputs: channels that come in.
      width: of the 3x3 convolution.
      stride: of the same.
      rngs: for the initial weights.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs):
        outputs = _EXPANSION * width
        self.conv1 = _Convolution(inputs, width, (1, 1), rngs=rngs)
        self.bn1 = _Norm(width, rngs=rngs)
        self.conv2 = _Convolution(width, width, (3, 3), strides=stride, padding=1, rngs=rngs)
        self.bn2 = _Norm(width, rngs=rngs)
        self.conv3 = _Convolution(width, outputs, (1, 1), rngs=rngs)
        self.bn3 = _Norm(outputs, rngs=rngs)
        self.has_shortcut = stride != 1 or inputs != outputs
        if self.has_shortcut:
            self.conv = _Convolution(inputs, outputs, (1, 1), strides=stride, rngs=rngs)
            self.bn = _Norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + (self.bn(self.conv(x)) if self.has_shortcut else x))


class ResNet50(nnx.Module):
    """A convolution, sixteen bottlenecks in four stages, the mean over the image, a dense layer.

    Args:
      cifar10: for images of 32 pixels and 10 classes, in place of 224 and 1000.
      rngs: for the initial weights.
    """

    def __init__(self, *, cifar10: bool, rngs: nnx.Rngs):
        if cifar10:
            self.conv1 = _Convolution(3, 64, (3, 3), padding=1, rngs=rngs)
        else:
            self.conv1 = _Convolution(3, 64, (7, 7), strides=2, padding=3, rngs=rngs)
        self.bn1 = _Norm(64, rngs=rngs)
        blocks, inputs = [], 64
        for stage, (width, count) in enumerate(_STAGES):
            for block in range(count):
                stride = 2 if stage and not block else 1
                blocks.append(Bottleneck(inputs, width, stride, rngs=rngs))
                inputs = _EXPANSION * width
        self.blocks = nnx.List(blocks)
        self.fc = nnx.Linear(inputs, 10 if cifar10 else 1000, rngs=rngs)
        self.pools = not cifar10

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 224, 224, 3] or [N, 32, 32, 3] float32, normalized; returns [N, classes] logits."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        if self.pools:
            # Zeros on every side, below which nothing is after a ReLU.
            x = nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        for block in self.blocks:
            x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))
