"""python -m experiments.benchmarks.latency ARTIFACT ...: how long models of files take, that have had channels taken out of them.

For one image and for 128, jitted, beside the dense model of the same kind, in turn; the median over the rounds of the ratio within a
round is what counts. A LeNet-5 is run with convolutions of either form there is, and each of the two models in the form in which it is
faster; `faster_in_its_form` is for both in the form in which the smaller one is.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.facts import facts_of
from experiments.files import write_json
from experiments.model import Model, build, refilled
from experiments.models.convolution import as_usual
from experiments.models.lenet5 import LeNet5
from experiments.provenance import provenance
from experiments.publish import RESULTS
from jpq_jax.policy.network import costs, network_of

_BATCHES = (1, 128)
_IMAGES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
_ROUND = 0.2  # seconds of the dense model's in a round


def runner(model: Model, images: jax.Array) -> Callable[[], None]:
    run = jax.jit(model.logits)
    variables = jax.device_put(model.variables)

    def once() -> None:
        jax.block_until_ready(run(variables, images))

    once()
    return once


def forms(model: Model) -> list[Model]:
    """The model, and if it is a LeNet-5, the same with XLA's own convolutions."""
    module = nnx.merge(model.graph, model.variables)
    if not isinstance(module, LeNet5):
        return [model]
    module.convolved_and_pooled = as_usual
    return [model, Model(*nnx.split(module, nnx.Param, nnx.BatchStat))]


def seconds(once: Callable[[], None], times: int) -> float:
    """Of one, in a row of so many."""
    start = time.perf_counter()
    for _ in range(times):
        once()
    return (time.perf_counter() - start) / times


def _ratio(slow: list[float], fast: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def macs(model: Model, shape: tuple[int, ...]) -> float:
    network = network_of(
        model.logits, model.variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )
    return float(costs(network, jnp.full(len(network.slot_of), 8, jnp.int32)).macs)


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each batch size."""
    codes, extras, file_bytes = jpq_jax.artifact.load(path)
    facts = facts_of(path, extras)
    dense = build(facts["model"], seed=0)
    small = refilled(dense, jpq_jax.dequantize(codes))
    shape = _IMAGES[facts["dataset"]]
    rows = []
    for batch in _BATCHES:
        images = jax.random.normal(jax.random.key(0), (batch, *shape))
        runners = [[runner(form, images) for form in forms(model)] for model in (dense, small)]
        times = max(round(_ROUND / seconds(runners[0][0], 3)), 1)
        rounds_of_seconds = [
            [[seconds(once, times) for once in of_model] for of_model in runners]
            for _ in range(rounds)
        ]
        dense_forms, small_forms = (
            [list(of_form) for of_form in zip(*of_model, strict=True)]
            for of_model in zip(*rounds_of_seconds, strict=True)
        )
        best = min(small_forms, key=statistics.median)
        in_its_form = dense_forms[small_forms.index(best)]
        dense_best = min(dense_forms, key=statistics.median)
        rows.append(
            {
                "artifact": path.name,
                "batch": batch,
                "file_bytes": file_bytes,
                "dense_seconds": statistics.median(dense_best),
                "small_seconds": statistics.median(best),
                "faster": _ratio(dense_best, best),
                "faster_in_its_form": _ratio(in_its_form, best),
                "dense_macs": macs(dense, shape),
                "small_macs": macs(small, shape),
            }
        )
    return rows


def main(artifacts: tyro.conf.Positional[tuple[Path, ...]], rounds: int = 21) -> int:
    """Times, prints a table, writes experiments/results/latency.json.

    Args:
      artifacts: files that experiments.run wrote.
      rounds: alternations.
    """
    rows = [row for path in artifacts for row in measure(path, rounds)]
    table = Table(title="milliseconds of a batch")
    for column in ("artifact", "batch", "dense", "smaller", "faster", "in its form", "operations"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["artifact"],
            str(row["batch"]),
            f"{1e3 * row['dense_seconds']:.3f}",
            f"{1e3 * row['small_seconds']:.3f}",
            f"{row['faster']:.2f}x",
            f"{row['faster_in_its_form']:.2f}x",
            f"{row['dense_macs'] / row['small_macs']:.2f}x fewer",
        )
    Console().print(table)
    write_json(RESULTS / "latency.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.latency"))
