"""The random changes of images, against slices of NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data


def random_images(seed, count, shape=(28, 28, 1)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def shifts_of(image, pixels):
    """{(down, right): the image so shifted}, by slices of NumPy arrays."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return {
        (pixels - top, pixels - left): padded[top : top + height, left : left + width]
        for top in range(2 * pixels + 1)
        for left in range(2 * pixels + 1)
    }


def find_shift(image, candidates):
    return [shift for shift, shifted in candidates.items() if np.array_equal(image, shifted)]


def test_random_shift_moves_each_image_on_its_own():
    images = random_images(5, 300, (6, 5, 2))
    shifted = jax.jit(data.random_shift, static_argnums=2)(
        jax.random.key(0), jnp.asarray(images), 2
    )
    assert shifted.dtype == jnp.uint8
    found = [
        find_shift(got, shifts_of(image, 2))
        for image, got in zip(images, np.asarray(shifted), strict=True)
    ]
    assert all(len(shifts) == 1 for shifts in found)
    assert {shifts[0] for shifts in found} == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
    }


def test_random_shift_by_nothing_is_the_identity():
    images = jnp.asarray(random_images(5, 20))
    np.testing.assert_array_equal(data.random_shift(jax.random.key(0), images, 0), images)


def test_random_shift_refuses_negative_pixels():
    with pytest.raises(ValueError, match="negative, got -1"):
        data.random_shift(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.uint8), -1)


def turned_by_hand(image, angle, stretch):
    """By loops, in float64."""
    height, width, channels = image.shape
    out = np.zeros(image.shape)
    for row, column, channel in np.ndindex(height, width, channels):
        y = (row - (height - 1) / 2) / np.exp(stretch[0])
        x = (column - (width - 1) / 2) / np.exp(stretch[1])
        down = np.cos(angle) * y - np.sin(angle) * x + (height - 1) / 2
        right = np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
        for i, j in np.ndindex(2, 2):
            at = int(np.floor(down)) + i, int(np.floor(right)) + j
            if 0 <= at[0] < height and 0 <= at[1] < width:
                share = (1 - abs(down - at[0])) * (1 - abs(right - at[1]))
                out[row, column, channel] += share * image[(*at, channel)]
    return out


def test_random_turn_is_a_rotation_and_a_stretch():
    images = random_images(9, 8, (9, 8, 2))
    got = data.random_turn(jax.random.key(3), jnp.asarray(images), 30.0, 0.2)
    assert got.dtype == jnp.uint8
    drawn = np.asarray(jax.random.uniform(jax.random.key(3), (8, 3), minval=-1, maxval=1), float)
    drawn *= [np.deg2rad(30), np.log(1.2), np.log(1.2)]
    for image, changed, of_image in zip(images, np.asarray(got), drawn, strict=True):
        expected = turned_by_hand(image, of_image[0], of_image[1:])
        np.testing.assert_allclose(changed, expected, atol=0.51)


def test_random_turn_by_nothing_is_the_identity():
    images = jnp.asarray(random_images(5, 20))
    np.testing.assert_array_equal(data.random_turn(jax.random.key(0), images, 0.0, 0.0), images)


def test_random_turn_refuses_negative_angles():
    with pytest.raises(ValueError, match="negative, got -1"):
        data.random_turn(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.uint8), -1, 0)


def test_random_flip_mirrors_half():
    images = random_images(6, 200, (8, 8, 3))
    changed = np.asarray(jax.jit(data.random_flip)(jax.random.key(0), jnp.asarray(images)))
    straight = (changed == images).all(axis=(1, 2, 3))
    mirrored = (changed == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (straight != mirrored).all()
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize(
    "change",
    [
        data.random_flip,
        lambda key, images: data.random_shift(key, images, 4),
        lambda key, images: data.random_turn(key, images, 10.0, 0.1),
    ],
)
def test_the_key_decides(change):
    images = jnp.asarray(random_images(7, 64))
    first, again, other = (change(jax.random.key(k), images) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_normalize():
    images = random_images(8, 4, (5, 5, 3))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    got = jax.jit(lambda x: data.normalize(x, mean, std))(jnp.asarray(images))
    assert got.dtype == jnp.float32
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
