"""Random changes of a batch of images, on the device. Pure functions, for use inside jit."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images / 255 - mean) / std.

    Args:
      images: [..., C] uint8.
      mean: C numbers, of images scaled to [0, 1].
      std: C numbers, of images scaled to [0, 1].

    Returns:
      [..., C] float32.
    """
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(x, jnp.float32).reshape(per_channel) for x in (mean, std))
    return (images.astype(jnp.float32) / 255 - center) / scale


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Shifts each image by its own whole number of pixels along both axes; zeros move in.

    Zero is black before `normalize`, not after.

    Args:
      key: random key.
      images: [N, H, W, C].
      pixels: the largest shift; -pixels ... pixels are equally likely. Static.

    Returns:
      [N, H, W, C], of the same dtype.
    """
    if pixels < 0:
        raise ValueError(f"pixels must not be negative, got {pixels}")
    count, *image_shape = images.shape
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pixels + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), image_shape)

    return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors half of the images, left to right. images: [N, H, W, C]."""
    flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
