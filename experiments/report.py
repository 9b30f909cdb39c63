"""The end of a run: writes the file, measures it as read back from disk, and shows the result."""

from __future__ import annotations

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

_BEST = "the highest accuracy on the validation split; of equals, the last"
_LAST = "the last, on all training images; the validation split is among them"


def finish(
    note: dict[str, Any],
    config: Config,
    model: Model,
    dataset: Dataset,
    snapshot: Snapshot,
    history: History,
    workdir: Path,
    console: Console,
) -> None:
    """Writes artifact.jpq, two plots and, last, results.json into `workdir`, and prints the tables.

    Args:
      note: what the work directory says of how the run was started.
      config: the settings.
      model: for its structure.
      dataset: for the test images, which only this looks at.
      snapshot: where training ended.
      history: its epochs.
      workdir: the work directory.
      console: to print on.
    """
    path = workdir / "artifact.jpq"
    about = {
        "config": note["settings"]["config"],
        "model": config.model,
        "dataset": config.dataset,
        "baseline_accuracy": accuracy(model, snapshot.baseline, dataset, dataset.test),
    }
    about |= {} if config.units is None else {"units": list(config.units)}
    if config.macs or config.method == "channelwise":
        about |= {"macs": config.macs}
    # Where every byte counts, the file holds the model and nothing else.
    jpq_jax.artifact.save(path, snapshot.best, None if config.nbytes else about)
    chosen = history[int(snapshot.best_epoch) - 1]
    results = {
        **evaluate.measure(path, config.data_dir, about),
        "validation_accuracy": chosen["validation_accuracy"],
        "epoch": chosen["epoch"],
        "epoch_chosen_by": _LAST if config.all_images else _BEST,
        "leaves": leaf_table(path),
        "seed": config.seed,
        "started": note,
        "finished": provenance(),
        "epochs": history,
    }
    plots.draw_history(history, workdir / "history.png")
    plots.draw_layers(results["leaves"], workdir / "layers.png")
    write_json(workdir / "results.json", results)
    show(results, workdir, console)


def leaf_table(path: Path) -> list[dict[str, Any]]:
    """What the file holds, leaf by leaf, and then what is not of a leaf; the bytes sum to the file's."""
    codes, extras, _ = jpq_jax.artifact.load(path)
    sizes = jpq_jax.artifact.leaf_bytes(codes, extras)
    coded = dict(sizes.leaves)
    dense = jpq_jax.dequantize(codes)
    why = {plan.path: plan.why for plan in jpq_jax.plan_leaves(dense)}
    rows = []
    for rate, (_, leaf) in zip(
        jpq_jax.account(codes), jpq_jax.leaves_with_paths(codes), strict=True
    ):
        shown = {"shape": list(leaf.shape), "bytes": coded[rate.path], "why": why[rate.path]}
        rows.append(rate._asdict() | shown)
    return [*rows, {"path": "names, shapes, checksum", "bytes": sizes.container}]


def show(results: dict[str, Any], workdir: Path, console: Console) -> None:
    """Prints the tables."""
    leaves = Table(title="what the file holds")
    for column in ("leaf", "shape", "what", "bits", "nonzeros", "density", "bytes"):
        leaves.add_column(column, justify="left" if column in ("leaf", "what") else "right")
    for row in results["leaves"]:
        leaves.add_row(row["path"], *_leaf_cells(row), f"{row['bytes']:,}")
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


def _leaf_cells(row: dict[str, Any]) -> list[str]:
    if "shape" not in row:
        return [""] * 5
    what = "compressed" if row["compressed"] else "stored"
    density = row["nonzeros"] / row["weights"] if row["weights"] else 0
    shape = "x".join(map(str, row["shape"]))
    numbers = [str(row["bits"]), f"{row['nonzeros']:,}", f"{100 * density:.2f} %"]
    return [shape, f"{what}: {row['why']}", *numbers]
