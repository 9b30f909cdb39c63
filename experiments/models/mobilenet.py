"""MobileNet-V1 for ImageNet (Howard et al., 2017, arXiv 1704.04861): 4,209,088 counted weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

_FIRST = 32  # channels of the first convolution
# Channels that go out of each block, and the stride of its depthwise convolution.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *5 * ((512, 1),),
    (1024, 2),
    (1024, 1),
)

_Convolution = functools.partial(nnx.Conv, use_bias=False)
_Norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


class Depthwise(nnx.Module):
    """3x3 of each channel by itself, of as many channels as the kernel has, so that it may be given a smaller one; `nnx.Conv` goes by
    the number that it was made for.

    Args:
      channels: that come in and go out.
      stride: of both axes.
      rngs: for the initial weights.
    """

    def __init__(self, channels: int, stride: int, *, rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal()(rngs.params(), (3, 3, 1, channels))
        self.kernel = nnx.Param(initial)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = jnp.asarray(self.kernel[...], x.dtype)
        return lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=kernel.shape[-1],
        )


class SeparableConvolution(nnx.Module):
    """3x3 of each channel by itself, then 1x1 over all of them.

    Args:
      inputs: channels that come in.
      outputs: channels that go out.
      stride: of the first.
      rngs: for the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.depthwise = Depthwise(inputs, stride, rngs=rngs)
        self.bn1 = _Norm(inputs, rngs=rngs)
        self.pointwise = _Convolution(inputs, outputs, (1, 1), rngs=rngs)
        self.bn2 = _Norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.depthwise(x)))
        return nnx.relu(self.bn2(self.pointwise(x)))


class MobileNetV1(nnx.Module):
    """conv 3x3x32 by 2, thirteen separable convolutions, the mean over the image, dense 1000.

    Args:
      rngs: for the initial weights.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = _Convolution(3, _FIRST, (3, 3), strides=2, padding=1, rngs=rngs)
        self.bn = _Norm(_FIRST, rngs=rngs)
        inputs = [_FIRST, *(outputs for outputs, _ in _BLOCKS)]
        self.blocks = nnx.List(
            [
                SeparableConvolution(n, *block, rngs=rngs)
                for n, block in zip(inputs, _BLOCKS, strict=False)
            ]
        )
        self.fc = nnx.Linear(1024, 1000, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [N, 224, 224, 3] float32, normalized; returns [N, 1000] logits."""
        x = nnx.relu(self.bn(self.conv(images)))
        for block in self.blocks:
            x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))
