"""python -m experiments.benchmarks.convolution: other forms of convolution than XLA's own.

LeNet-5's training step inside a scan, by blocks of pixels and as usual; ResNet-20's gradient, with that of the kernels by parts of the batch and as
usual.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax import lax

from experiments.benchmarks.latency import seconds
from experiments.files import write_json
from experiments.model import Model, build
from experiments.models.convolution import as_usual, convolved, convolved_and_pooled
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


def of_resnet20(convolution: Convolution, batch: int) -> Callable[[], Any]:
    """The gradient of ResNet-20 with it, once."""
    model = build("resnet20", seed=0)
    module = nnx.merge(model.graph, model.variables)
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Conv):
            node.conv_general_dilated = convolution
    model = Model(*nnx.split(module, nnx.Param, nnx.BatchStat))
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))

    def loss(params: Any) -> jax.Array:
        return jnp.mean(model.seen(params, model.statistics, images)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))
    return lambda: jax.block_until_ready(gradient(model.params))


def in_turn(each: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """The median seconds of each over the rounds, after one to compile."""
    for once in each:
        once()
    taken = [[seconds(once, 1) for once in each] for _ in range(rounds)]
    return [statistics.median(one) for one in zip(*taken, strict=True)]


def main(batch: int = 128, rounds: int = 7) -> int:
    """Compares the ways to convolve, and prints and writes the ratios.

    Args:
      batch: images per step.
      rounds: of ResNet-20's, in turn.
    """
    usual = seconds_per_step(as_usual, batch)
    blocks = seconds_per_step(convolved_and_pooled, batch)
    whole, parts = in_turn(
        [of_resnet20(way, batch) for way in (lax.conv_general_dilated, convolved)], rounds
    )
    result = {
        "batch": batch,
        "usual_ms": 1e3 * usual,
        "blocks_ms": 1e3 * blocks,
        "ratio": usual / blocks,
        "resnet20_usual_ms": 1e3 * whole,
        "resnet20_by_parts_ms": 1e3 * parts,
        "resnet20_ratio": whole / parts,
    }
    print(result)
    write_json(RESULTS / "convolution.json", result | provenance())
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.convolution"))
