"""python -m experiments.benchmarks.policy_search CHECKPOINT: which search finds the best bits for each channel, in equal numbers of trials.

ResNet-20 from its trained checkpoint, compressed without training, under a budget of weight bits. All see the same 1,000 training
images; the policies that they find are then measured on the validation split. What was found is kept in the work directory, and a run
that was stopped goes on.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.beginning import search, weight_bits
from experiments.config import Config, SearchName
from experiments.data import Dataset, load
from experiments.files import read_found, write_json
from experiments.model import Model, accuracy, build
from experiments.models.pytorch_weights import load_pytorch
from experiments.plots import draw_policy
from experiments.provenance import provenance
from experiments.publish import RESULTS
from jpq_jax.policy.find import METHODS

FIGURE = Path(__file__).parents[2] / "docs" / "policy.png"
_BY_CHANCE = ("random", "evolution", "agent")  # a rule gives the same for any seed
_TOLD = ("method", "seed", "searched_with", "validation", "spent", "trials", "seconds")


def measured(
    model: Model, dataset: Dataset, method: SearchName, ratio: float, evaluations: int, seed: int
) -> dict[str, Any]:
    """One search."""
    start = time.monotonic()
    limit = weight_bits(model, ratio)
    settings = Config(ratio=ratio, search=method, evaluations=evaluations, seed=seed)
    found = search(model, dataset, "bits", limit, settings, renormed=False)
    seconds = time.monotonic() - start
    variables = jpq_jax.dequantize(found.codes)
    return {
        "method": method,
        "seed": seed,
        "searched_with": found.accuracy,
        "validation": accuracy(model, variables, dataset, dataset.validation),
        "spent": float(found.costs.bits) / limit,
        "trials": len(found.rewards),
        "seconds": seconds,
        "rewards": np.asarray(found.rewards).tolist(),
        "sensed": found.sensed,
        "bits": {path: np.asarray(bits).tolist() for path, bits in found.bits.items()},
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method the median over the seeds, and the range."""
    each = []
    for method in METHODS:
        reached = sorted(row["validation"] for row in rows if row["method"] == method)
        if reached:
            median = statistics.median(reached)
            ends = {"least": reached[0], "most": reached[-1], "seeds": len(reached)}
            each.append({"method": method, "median": median, **ends})
    return each


def _draw(rows: list[dict[str, Any]]) -> None:
    """What evolution found with the first seed, and how it and the others by chance got there."""
    first = {row["method"]: row for row in rows if row["seed"] == 0}
    rewards = {}
    for method in _BY_CHANCE:
        rewards[method] = np.array(first[method]["rewards"])
        rewards[method][: first[method]["sensed"]] = np.nan
    draw_policy(first["evolution"]["bits"], rewards, FIGURE)


def main(
    checkpoint: tyro.conf.Positional[Path],
    data_dir: Path,
    ratio: float = 12.0,
    evaluations: int = 300,
    seeds: int = 5,
    workdir: Path = Path("work/policy_search"),
) -> int:
    """Searches, prints a table, writes experiments/results/policy_search.json and docs/policy.png.

    Args:
      checkpoint: resnet20_cifar10.safetensors.
      data_dir: where CIFAR-10 is.
      ratio: of float32's bits.
      evaluations: for each search by chance.
      seeds: of these.
      workdir: for what is found so far, of one command.
    """
    console = Console()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "rows.json"
    settings = {"checkpoint": checkpoint.name, "ratio": ratio, "evaluations": evaluations}
    rows = read_found(path, settings) or []
    model = load_pytorch("resnet20", checkpoint, build("resnet20", seed=0))
    dataset = load("cifar10", str(data_dir))
    done = {(row["method"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for method in METHODS if seed == 0 else _BY_CHANCE:
            if (method, seed) in done:
                continue
            rows.append(measured(model, dataset, method, ratio, evaluations, seed))
            write_json(path, {"settings": settings, "found": rows})
            console.print({key: rows[-1][key] for key in _TOLD})
    table = Table(title=f"ResNet-20 at {ratio:g}x without training, validation accuracy")
    for column in ("method", "seeds", "median", "least", "most"):
        table.add_column(column, justify="right")
    for row in summary(rows):
        shares = (f"{100 * row[key]:.2f} %" for key in ("median", "least", "most"))
        table.add_row(row["method"], str(row["seeds"]), *shares)
    console.print(table)
    _draw(rows)
    told = [{key: row[key] for key in _TOLD} for row in rows]
    found = {**settings, "summary": summary(rows), "rows": told}
    write_json(RESULTS / "policy_search.json", {**found, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.policy_search"))
