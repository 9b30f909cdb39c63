"""python -m experiments.benchmarks.convolution: LeNet-5's training step inside a scan, by blocks of pixels and as usual."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from experiments.files import write_json
from experiments.models.convolution import as_usual, convolved_and_pooled
from experiments.provenance import provenance
from experiments.publish import RESULTS

_STEPS = 5

Convolution = Callable[..., jax.Array]


def seconds_per_step(convolution: Convolution, batch: int) -> float:
    """Both convolutions of LeNet-5 and what pools them, forward and backward; the best of three warm runs of a scan over batches."""
    draw = np.random.default_rng(0)
    kernels = [
        jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((5, 5, 1, 20), (5, 5, 20, 50))
    ]
    images = jnp.asarray(draw.normal(size=(_STEPS, batch, 28, 28, 1)), jnp.float32)

    def loss(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = convolution(x, kernel, jnp.zeros(kernel.shape[-1]))
        return jnp.mean(x**2)

    @jax.jit
    def run(kernels: list[jax.Array]) -> Any:
        def step(carry: list[jax.Array], x: jax.Array) -> tuple[list[jax.Array], None]:
            gradients = jax.grad(loss)(carry, x)
            return [k - 1e-3 * g for k, g in zip(carry, gradients, strict=True)], None

        return lax.scan(step, kernels, images)

    jax.block_until_ready(run(kernels))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(run(kernels))
        times.append((time.perf_counter() - started) / _STEPS)
    return min(times)


def main(batch: int = 128) -> int:
    """Compares the two ways to convolve, and prints and writes the ratio.

    Args:
      batch: images per step.
    """
    usual = seconds_per_step(as_usual, batch)
    blocks = seconds_per_step(convolved_and_pooled, batch)
    result = {
        "batch": batch,
        "usual_ms": 1e3 * usual,
        "blocks_ms": 1e3 * blocks,
        "ratio": usual / blocks,
    }
    print(result)
    write_json(RESULTS / "convolution.json", result | provenance())
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.convolution"))
