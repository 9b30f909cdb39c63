"""python -m experiments.benchmarks.latency ARTIFACT ...: how long models of files take, that have had channels taken out of them.

For one image and for 128, jitted, beside the dense model of the same kind, in turn; the median over the rounds of the ratio within a
round is what counts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.files import write_json
from experiments.model import Model, build, refilled
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


def seconds(once: Callable[[], None], times: int) -> float:
    """Of one, in a row of so many."""
    start = time.perf_counter()
    for _ in range(times):
        once()
    return (time.perf_counter() - start) / times


def macs(model: Model, shape: tuple[int, ...]) -> float:
    network = network_of(
        model.logits, model.variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )
    return float(costs(network, jnp.full(len(network.slot_of), 8, jnp.int32)).macs)


def _told(path: Path) -> dict[str, Any]:
    """Of a file that says nothing of its model, what its run says, or its record."""
    own = path.with_name("results.json")
    if own.exists():
        return json.loads(own.read_text())
    return json.loads((RESULTS / f"{path.stem}.json").read_text())["runs"][0]


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each batch size."""
    codes, facts, file_bytes = jpq_jax.artifact.load(path)
    facts = facts or _told(path)
    dense = build(facts["model"], seed=0)
    small = refilled(dense, jpq_jax.dequantize(codes))
    shape = _IMAGES[facts["dataset"]]
    rows = []
    for batch in _BATCHES:
        images = jax.random.normal(jax.random.key(0), (batch, *shape))
        both = [runner(model, images) for model in (dense, small)]
        times = max(round(_ROUND / seconds(both[0], 3)), 1)
        pairs = [[seconds(once, times) for once in both] for _ in range(rounds)]
        rows.append(
            {
                "artifact": path.name,
                "batch": batch,
                "file_bytes": file_bytes,
                "dense_seconds": statistics.median(pair[0] for pair in pairs),
                "small_seconds": statistics.median(pair[1] for pair in pairs),
                "faster": statistics.median(pair[0] / pair[1] for pair in pairs),
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
    for column in ("artifact", "batch", "dense", "smaller", "faster", "multiplications"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["artifact"],
            str(row["batch"]),
            f"{1e3 * row['dense_seconds']:.3f}",
            f"{1e3 * row['small_seconds']:.3f}",
            f"{row['faster']:.2f}x",
            f"{row['dense_macs'] / row['small_macs']:.2f}x fewer",
        )
    Console().print(table)
    write_json(RESULTS / "latency.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.latency"))
