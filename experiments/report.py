"""The end of a run: writes the file, measures it as read back from disk, and shows the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments import evaluate, plots
from experiments.config import Config
from experiments.data import Dataset
from experiments.files import write_json
from experiments.model import Model, accuracy
from experiments.provenance import provenance
from experiments.training import History, Snapshot


def finish(
    name: str,
    config: Config,
    model: Model,
    dataset: Dataset,
    snapshot: Snapshot,
    history: History,
    workdir: Path,
    console: Console,
) -> dict[str, Any]:
    """Writes artifact.jpq, results.json and two plots into `workdir`; prints the table; returns the results."""
    path = workdir / "artifact.jpq"
    extras = {
        "config": name,
        "model": config.model,
        "dataset": config.dataset,
        "baseline_accuracy": accuracy(model, snapshot.baseline, dataset, dataset.test),
    }
    jpq_jax.artifact.save(path, snapshot.best, extras)
    measured = evaluate.measure(path, config.data_dir)
    results = {
        **measured,
        "validation_accuracy": float(snapshot.best_accuracy),
        "chosen_by": "the epoch of the highest accuracy on the validation split",
        "leaves": leaf_table(path),
        "epochs": history,
        "seed": config.seed,
        "settings": dataclasses.asdict(config) | {"workdir": None},
        **provenance(),
    }
    write_json(workdir / "results.json", results)
    plots.draw_history(history, workdir / "history.png")
    plots.draw_layers(results["leaves"], workdir / "layers.png")
    show(results, workdir, console)
    return results


def leaf_table(path: Path) -> list[dict[str, Any]]:
    """What the file holds, leaf by leaf, and then what is not of a leaf."""
    codes = jpq_jax.artifact.load(path).codes
    sizes = jpq_jax.artifact.leaf_bytes(codes)
    coded = dict(sizes.leaves)
    rows = []
    for rate, (_, leaf) in zip(
        jpq_jax.account(codes), jpq_jax.leaves_with_paths(codes), strict=True
    ):
        row = rate._asdict() | {"shape": list(leaf.shape), "bytes": coded[rate.path]}
        rows.append(row | {"what": "stored" if rate.stored else "pruned and quantized"})
    return rows


def show(results: dict[str, Any], workdir: Path, console: Console) -> None:
    """Prints the tables."""
    leaves = Table(title="what the file holds")
    for column in ("leaf", "shape", "what", "bits", "nonzeros", "density", "bytes"):
        leaves.add_column(column, justify="left" if column in ("leaf", "what") else "right")
    for row in results["leaves"]:
        density = row["nonzeros"] / row["weights"] if row["weights"] else 0
        shape = "x".join(map(str, row["shape"]))
        numbers = (f"{row['nonzeros']:,}", f"{100 * density:.2f} %", f"{row['bytes']:,}")
        leaves.add_row(row["path"], shape, row["what"], str(row["bits"]), *numbers)
    console.print(leaves)

    summary = Table(
        title=f"{results['model']} on {results['dataset']}, measured on the file as read back"
    )
    summary.add_column("")
    summary.add_column("", justify="right")
    for label, value in (
        ("test accuracy, dense baseline", f"{100 * results['baseline_accuracy']:.2f} %"),
        ("test accuracy, compressed file", f"{100 * results['accuracy']:.2f} %"),
        ("paper-metric ratio (bits x nonzeros)", f"{results['paper_ratio']:,.0f}x"),
        ("pruning ratio", f"{results['pruning_ratio']:,.1f}x"),
        ("file, everything in it", f"{results['file_bytes']:,} bytes"),
        ("true ratio against float32", f"{results['true_ratio']:,.0f}x"),
    ):
        summary.add_row(label, value)
    console.print(summary)
    console.print(f"artifact.jpq, results.json, history.png and layers.png are in {workdir}")
