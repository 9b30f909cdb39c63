"""python -m experiments.benchmarks.projection: the joint projection's cost, against an Adam step of the same weights.

On the kernels' shapes of LeNet-5, ResNet-50 and AlexNet, and on 1 to 250 million weights. Beside them, in the same
run: one multiplication of all weights, the published projections of this library, and what a user would write in
NumPy for one bit-width: a threshold by partition, and k-means.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.files import write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS

_DENSITY, _BITS = 0.05, 3
_RUNS = 7
_PUBLISHED_UP_TO = 70e6  # weights: beyond, the published projections and NumPy are left out
_MILLIONS = (1, 4, 16, 64, 250)

Shapes = list[tuple[int, ...]]


class Case(NamedTuple):
    """Attributes:
    name: of the model, or its size.
    shapes: of its kernels.
    """

    name: str
    shapes: Shapes


def resnet50_shapes() -> Shapes:
    """The kernels of ResNet-50 for ImageNet, in Flax's layout."""
    shapes: Shapes = [(7, 7, 3, 64)]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            if block == 0:
                shapes.append((1, 1, width_in, 4 * width))
            shapes += [(1, 1, width_in, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            width_in = 4 * width
    return [*shapes, (2048, 1000)]


CASES = (
    Case("LeNet-5", [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]),
    Case("ResNet-50", resnet50_shapes()),
    Case(
        "AlexNet",
        [
            (11, 11, 3, 64),
            (5, 5, 64, 192),
            (3, 3, 192, 384),
            (3, 3, 384, 256),
            (3, 3, 256, 256),
            (9216, 4096),
            (4096, 4096),
            (4096, 1000),
        ],
    ),
)


def weights_of(shapes: Shapes) -> list[jax.Array]:
    """Normal, of the spread that He's initialization gives: layers differ, as in a trained model."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[:-1]))
        for key, shape in zip(keys, shapes, strict=True)
    ]


def seconds(run: Callable[[], Any], runs: int = _RUNS) -> float:
    """Median of warm runs."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def adam_seconds(weights: list[jax.Array]) -> float:
    """A step with params and state donated, as in training."""
    optimizer = optax.adam(1e-3)

    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(1, 2))
    held = [jax.tree.map(jnp.copy, weights), optimizer.init(weights)]

    def run() -> Any:
        held[0], held[1] = compiled(weights, held[1], held[0])
        return held[0]

    return seconds(run)


def numpy_seconds(weights: list[jax.Array], budget_bits: int) -> float:
    """One global threshold by partition, then ten iterations of k-means of each layer's survivors, at 3 bits."""
    arrays = [np.asarray(w).ravel() for w in weights]

    def project() -> list[np.ndarray]:
        magnitudes = np.abs(np.concatenate(arrays))
        kept = budget_bits // _BITS
        threshold = np.partition(magnitudes, -kept)[-kept]
        results = []
        for w in arrays:
            place = np.flatnonzero(np.abs(w) >= threshold)
            values = w[place]
            levels = np.linspace(values.min(initial=0), values.max(initial=0), 2**_BITS)
            for _ in range(10):
                nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
                count = np.bincount(nearest, minlength=2**_BITS)
                total = np.bincount(nearest, values, minlength=2**_BITS)
                levels = np.where(count > 0, total / np.maximum(count, 1), levels)
            quantized = np.zeros_like(w)
            quantized[place] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
            results.append(quantized)
        return results

    return seconds(project, runs=3)


def measure(case: Case) -> dict[str, Any]:
    """One row: seconds of each, and ratios to the Adam step."""
    weights = weights_of(case.shapes)
    size = sum(w.size for w in weights)
    limit = int(_DENSITY * _BITS * size)
    budget = jpq_jax.Budget(bits=limit)
    # Compiled as it would be inside a step: a call from outside also looks for weights that are not finite.
    joint = jax.jit(lambda w: jpq_jax.project(w, budget)).lower(weights).compile()
    multiply = jax.jit(lambda weights: [w * 1.5 for w in weights])
    row: dict[str, Any] = {
        "case": case.name,
        "weights": size,
        "adam_seconds": adam_seconds(weights),
        "multiply_seconds": seconds(lambda: multiply(weights)),
        "joint_seconds": seconds(lambda: joint(weights)),
        "joint_extra_memory": extra_memory(joint, weights),
    }
    if size <= _PUBLISHED_UP_TO:
        row["published_seconds"] = seconds(
            lambda: jpq_jax.project_alternating(weights, budget, rounds=1), runs=3
        )
        row["numpy_seconds"] = numpy_seconds(weights, limit)
    for name in ("joint", "published", "numpy"):
        if f"{name}_seconds" in row:
            row[f"{name}_to_adam"] = row[f"{name}_seconds"] / row["adam_seconds"]
    return row


def extra_memory(compiled: Any, weights: list[jax.Array]) -> float:
    """What the compiled projection allocates, its result included, as a multiple of the weights' own memory."""
    analysis = compiled.memory_analysis()
    own = sum(w.nbytes for w in weights)
    return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / own


def exponent(rows: list[dict[str, Any]]) -> float:
    """Slope of log seconds over log weights."""
    x, y = (np.log([row[key] for row in rows]) for key in ("weights", "joint_seconds"))
    return float(np.polyfit(x, y, 1)[0])


def main(largest: int = 250) -> int:
    """Measures all cases; writes experiments/results/projection.json.

    Args:
      largest: millions of weights to go up to.
    """
    sizes = [m for m in _MILLIONS if m <= largest]
    scaling = [Case(f"{m} M", [(m * 1000, 1000)]) for m in sizes]
    rows = [measure(case) for case in CASES]
    scaled = [measure(case) for case in scaling]
    columns = ("joint_to_adam", "joint_extra_memory", "published_to_adam", "numpy_to_adam")
    table = Table(title=f"one projection, density {_DENSITY}, {_BITS} bits; an Adam step = 1")
    for name in ("case", "weights", "adam, s", "joint", "extra memory", "published", "NumPy"):
        table.add_column(name, justify="right")
    for row in rows + scaled:
        shown = [f"{row[name]:.2f}" if name in row else "" for name in columns]
        table.add_row(row["case"], f"{row['weights']:,}", f"{row['adam_seconds']:.4f}", *shown)
    Console().print(table)
    result = {"rows": rows, "scaling": scaled, "exponent": exponent(scaled), **provenance()}
    print(f"exponent of the joint projection's cost: {result['exponent']:.3f}")
    write_json(RESULTS / "projection.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.projection"))
