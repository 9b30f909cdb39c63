"""python -m experiments.benchmarks.full_size: the constrained training step of AlexNet and ResNet-50 at their full size.

With random weights and drawn images: what a step takes, beside SGD with momentum alone, how much memory, and how large the files
are at the papers' budgets. Nothing is said about accuracy. The constrained steps are measured in rounds of 10, in each of which
the plan, or ADMM's copy, is made once; published runs make it once an epoch.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.benchmarks.steps import Steps
from experiments.config import ModelName
from experiments.files import read_found, write_json
from experiments.model import build
from experiments.provenance import provenance
from experiments.publish import RESULTS

METHODS = ("joint", "admm", "pruning")
_EVERY = 10


class Case(NamedTuple):
    """Attributes:
    model: by name.
    ratio: the paper's, in bits x nonzeros.
    keep: share of the weights that pruning alone keeps there.
    batch: images in a step here.
    side: of an image.
    classes: of the labels.
    epoch: images in an epoch there.
    epochs: of the published schedule.
    """

    model: ModelName
    ratio: float
    keep: float
    batch: int
    side: int
    classes: int
    epoch: int
    epochs: int


CASES = (
    Case("alexnet", 205, 1 / 24.7, 16, 224, 1000, 1_281_167, 3 * 90 + 60),
    Case("resnet50_cifar10", 836, 1 / 24.7, 16, 32, 10, 50_000, 300),
)


def optimizers(case: Case) -> dict[str, optax.GradientTransformation]:
    """By the name of the method."""
    sgd = optax.sgd(1e-3, momentum=0.9)
    budget = jpq_jax.Budget(ratio=case.ratio)
    return {
        "plain": sgd,
        "joint": jpq_jax.latent(sgd, jpq_jax.joint(budget), every=_EVERY),
        "admm": optax.chain(sgd, jpq_jax.admm(budget, rho=0.05, every=_EVERY, learning_rate=1e-3)),
        "pruning": optax.chain(
            jpq_jax.admm_to(jpq_jax.pruning(case.keep), rho=1e-3, every=_EVERY), sgd
        ),
    }


def measure(
    case: Case, rounds: int, folder: Path, row: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Adds to the row what it lacks, and keeps it after each method."""
    model = build(case.model, seed=0)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.variables))
    row |= case._asdict() | {"parameter_bytes": size, "rounds": rounds}
    optimizer_of = optimizers(case)
    left = [name for name in METHODS if name not in row]
    if not left:
        return
    plain = Steps(model, optimizer_of["plain"], **_images(case))
    plain.seconds(_EVERY)
    row["plain_seconds"] = statistics.median(plain.seconds(_EVERY) for _ in range(rounds)) / _EVERY
    row["plain_memory"] = plain.memory / size
    for name in left:
        steps = Steps(model, optimizer_of[name], **_images(case))
        steps.seconds(_EVERY)
        pairs = [(plain.seconds(_EVERY), steps.seconds(_EVERY)) for _ in range(rounds)]
        codes = jpq_jax.finalize(steps.held[0], steps.held[2])
        path = folder / f"{case.model}-{name}.jpq"
        each = statistics.median(own for _, own in pairs) / _EVERY
        row[name] = {
            "seconds": each,
            "to_plain": statistics.median(own / base for base, own in pairs),
            "memory": steps.memory / size,
            "file_bytes": jpq_jax.artifact.save(path, codes),
            "paper_ratio": None if name == "pruning" else jpq_jax.paper_ratio(codes),
            "hours_of_published_schedule_here": each * case.epochs * case.epoch / case.batch / 3600,
        }
        del steps, codes
        keep()


def _images(case: Case) -> dict[str, int]:
    return {"batch": case.batch, "side": case.side, "channels": 3, "classes": case.classes}


def main(rounds: int = 3, folder: Path = Path("work/full_size")) -> int:
    """Measures, prints a table, writes experiments/results/full_size.json.

    Args:
      rounds: of ten steps, in turn with the plain ones.
      folder: where the files go, and what is measured so far: a benchmark that was stopped goes on.
    """
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / "full_size.json", {"rounds": rounds}
    rows: list[dict[str, Any]] = read_found(path, settings) or [{} for _ in CASES]

    def keep() -> None:
        write_json(path, {"settings": settings, "found": rows})
        console.print(
            f"{path}: {', '.join(name for row in rows for name in row if name in METHODS)}"
        )

    for case, row in zip(CASES, rows, strict=True):
        measure(case, rounds, folder, row, keep)
    table = Table(title="the constrained step at full size, by the plain one")
    for column in ("model", "method", "step, s", "to plain", "memory by parameters", "file"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["model"], "plain", f"{row['plain_seconds']:.2f}", "", f"{row['plain_memory']:.1f}"
        )
        for name in METHODS:
            found = row[name]
            table.add_row(
                row["model"],
                name,
                f"{found['seconds']:.2f}",
                f"{found['to_plain']:.2f}",
                f"{found['memory']:.1f}",
                f"{found['file_bytes']:,}",
            )
    console.print(table)
    write_json(RESULTS / "full_size.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.full_size"))
