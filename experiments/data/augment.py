"""Random changes of a batch of images, on the device. Pure functions, for use inside jit."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


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


def random_turn(key: jax.Array, images: jax.Array, degrees: float, zoom: float) -> jax.Array:
    """Turns each image about its middle, and stretches both of its axes, each by as much as chance will have it; zeros move in.

    Args:
      key: random key.
      images: [N, H, W, C] uint8.
      degrees: the largest angle; all up to it, either way, are equally likely.
      zoom: axes become up to 1 + zoom times as long or short, equally likely in their logarithm.

    Returns:
      [N, H, W, C] uint8, interpolated between the four nearest pixels.
    """
    if min(degrees, zoom) < 0:
        raise ValueError(f"degrees and zoom must not be negative, got {degrees} and {zoom}")
    count, height, width, _ = images.shape
    limits = jnp.array([jnp.deg2rad(degrees), jnp.log1p(zoom), jnp.log1p(zoom)])
    drawn = jax.random.uniform(key, (count, 3), minval=-1, maxval=1) * limits[None]
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2]).reshape(2, 1, 1)
    along = (jnp.arange(length, dtype=jnp.float32) for length in (height, width))
    places = jnp.stack(jnp.meshgrid(*along, indexing="ij")) - middle

    def turned(image: jax.Array, angle: jax.Array, stretch: jax.Array) -> jax.Array:
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        back = jnp.array([[cos, -sin], [sin, cos]]) @ jnp.diag(jnp.exp(-stretch))
        down, right = jnp.einsum("ij,jhw->ihw", back, places) + middle

        def of_channel(channel: jax.Array) -> jax.Array:
            return map_coordinates(channel.astype(jnp.float32), [down, right], order=1)

        return jax.vmap(of_channel, in_axes=-1, out_axes=-1)(image)

    found = jax.vmap(turned)(images, drawn[:, 0], drawn[:, 1:])
    return jnp.round(found).astype(jnp.uint8)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors half of the images, left to right. images: [N, H, W, C]."""
    flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
