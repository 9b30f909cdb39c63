"""Training steps of a model on one batch of drawn images, for benchmarks: how long they take, and how much memory."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.model import Model


class Steps:
    """Goes on from where the last steps ended.

    Args:
      model: starts with its weights.
      optimizer: complete.
      batch: how many images.
      side: of an image.
      channels: of an image.
      classes: of the labels.
    """

    def __init__(
        self,
        model: Model,
        optimizer: optax.GradientTransformation,
        *,
        batch: int,
        side: int,
        channels: int,
        classes: int = 10,
    ) -> None:
        keys = jax.random.split(jax.random.key(0))
        images = jax.random.normal(keys[0], (batch, side, side, channels))
        labels = jax.random.randint(keys[1], (batch,), 0, classes)

        def loss(params: Any, statistics: Any):
            logits, statistics = model.seen(params, statistics, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), statistics

        def step(params: Any, statistics: Any, state: Any):
            gradients, statistics = jax.grad(loss, has_aux=True)(params, statistics)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), statistics, state

        params, statistics = (jax.tree.map(jnp.copy, x) for x in (model.params, model.statistics))
        self.held = params, statistics, optimizer.init(params)
        self._step = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*self.held).compile()

    def seconds(self, count: int) -> float:
        """Of so many steps."""
        started = time.perf_counter()
        for _ in range(count):
            self.held = self._step(*self.held)
        jax.block_until_ready(self.held)
        return time.perf_counter() - started

    @property
    def memory(self) -> int:
        """Bytes that a step needs: what it is given and gives back, and its temporaries, as the compiler says."""
        found = self._step.memory_analysis()
        if found is None:
            raise ValueError("the compiler of this platform does not say what memory a step needs")
        return (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
        )
