"""python -m experiments.benchmarks.step_overhead: what training through the joint projection adds to a training step.

Steps of LeNet-5 and of ResNet-20 on batches of 128 drawn images: SGD with momentum alone, and the same optimizer inside
`latent`, re-planned every 10 steps. The two are measured in turn, a round of 10 steps each, so that both see the same
machine; the median over the rounds of the ratio within a round is what counts.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import optax
import tyro
from rich.console import Console
from rich.table import Table

import jpq_jax
from experiments.benchmarks.steps import Steps
from experiments.config import ModelName
from experiments.files import write_json
from experiments.model import build
from experiments.provenance import provenance
from experiments.publish import RESULTS

_BATCH, _EVERY, _RATIO = 128, 10, 50
_IMAGES: dict[ModelName, tuple[int, int]] = {"lenet5": (28, 1), "resnet20": (32, 3)}


def measure(name: ModelName, rounds: int) -> dict[str, Any]:
    """One row."""
    model = build(name, seed=0)
    side, channels = _IMAGES[name]
    sgd = optax.sgd(1e-3, momentum=0.9)
    latent = jpq_jax.latent(sgd, jpq_jax.joint(jpq_jax.Budget(ratio=_RATIO)), every=_EVERY)
    both = [
        Steps(model, optimizer, batch=_BATCH, side=side, channels=channels)
        for optimizer in (sgd, latent)
    ]
    for steps in 2 * both:  # the first plan takes longest
        steps.seconds(_EVERY)
    pairs = [tuple(steps.seconds(_EVERY) for steps in both) for _ in range(rounds)]
    return {
        "model": name,
        "batch": _BATCH,
        "rounds": rounds,
        "steps_in_a_round": _EVERY,
        "plain_ms": 1e3 * statistics.median(p for p, _ in pairs) / _EVERY,
        "constrained_ms": 1e3 * statistics.median(c for _, c in pairs) / _EVERY,
        "overhead": statistics.median(c / p for p, c in pairs) - 1,
    }


def main(rounds: int = 20) -> int:
    """Measures both models; writes experiments/results/step_overhead.json.

    Args:
      rounds: alternations.
    """
    rows = [measure(name, rounds) for name in _IMAGES]
    table = Table(title=f"a training step, batch {_BATCH}, re-planned every {_EVERY} steps")
    for column in ("model", "plain, ms", "through the projection, ms", "overhead"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = (f"{row['plain_ms']:.2f}", f"{row['constrained_ms']:.2f}")
        table.add_row(row["model"], *figures, f"{100 * row['overhead']:.1f} %")
    Console().print(table)
    write_json(RESULTS / "step_overhead.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.step_overhead"))
