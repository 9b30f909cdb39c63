"""Statistics of a compressed model: the mean of running means, and their digits in a file."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.config import Config
from experiments.data import Split
from experiments.model import Model
from experiments.norms import in_few_digits, seen_by_norms

BATCH, BATCHES = 8, 24


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.norm(images)


def setting(norm_batches: int) -> Config:
    return dataclasses.replace(
        Config(ratio=20), norm_batches=norm_batches, batch_size=BATCH, shift=0, flip=False
    )


def test_norms_see_the_mean_of_the_running_means() -> None:
    images = np.random.default_rng(0).integers(0, 256, (BATCH * BATCHES, 4, 4, 3)).astype(np.uint8)
    batches = images.reshape(BATCHES, BATCH, 4, 4, 3)

    train = Split(images, np.zeros(len(images), np.int32))
    dataset: Any = SimpleNamespace(train=train, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model = Model(*nnx.split(Net(nnx.Rngs(0)), nnx.Param, nnx.BatchStat))
    with jax.numpy_dtype_promotion("standard"):  # which the norm's own arithmetic needs
        found = seen_by_norms(model, dataset, setting(8))(model.params, model.statistics)
    means = ((batches / 255 - 0.5) / 0.25).mean(axis=(1, 2, 3))
    running, seen = np.zeros(3), []
    for mean in means:
        running = 0.9 * running + 0.1 * mean
        seen.append(running)
    np.testing.assert_allclose(
        found["norm"]["mean"].get_value(), np.mean(seen[16:], axis=0), atol=1e-5
    )
    assert seen_by_norms(model, dataset, setting(0))(None, "those given") == "those given"


def test_few_digits_lose_little() -> None:
    draw = np.random.default_rng(0)
    statistics = {"mean": draw.normal(size=64), "var": draw.lognormal(size=64)}
    short = in_few_digits(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), statistics))
    for name, exact in statistics.items():
        error = np.sqrt(np.mean((np.asarray(short[name]) - exact) ** 2) / np.mean(exact**2))
        assert 0 < error < 0.01
