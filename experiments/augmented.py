"""Training images as a config wants them varied."""

from __future__ import annotations

import jax

from experiments.config import Config
from experiments.data import random_flip, random_shift, random_turn


def augmented(config: Config, key: jax.Array, images: jax.Array) -> jax.Array:
    """images: [N, H, W, C] uint8; turned, shifted and flipped at random, as the config has it."""
    if config.turn or config.zoom:
        images = random_turn(jax.random.fold_in(key, 2), images, config.turn, config.zoom)
    if config.shift:
        images = random_shift(key, images, config.shift)
    if config.flip:
        images = random_flip(jax.random.fold_in(key, 1), images)
    return images
