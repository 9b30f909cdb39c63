"""python -m experiments.benchmarks.distortion FOLDER: the joint projection's error at a budget, against the published one's.

FOLDER holds lenet5_mnist.safetensors and resnet20_cifar10.safetensors. At the budgets for which the authors' own code
was measured (`published_projections`), and on a curve from 8x to 4,000x.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

import jpq_jax
from experiments import plots
from experiments.benchmarks.published_projections import (
    AUTHORS,
    POINTS,
    budget_at,
    distortion,
    kernels_of,
)
from experiments.files import write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS

_RATIOS = (8, 16, 32, 64, 125, 250, 500, 1000, 2000, 4000)
FIGURE = Path(__file__).parents[2] / "docs" / "distortion.png"


def compare(params: dict[str, jax.Array], bits: float, start_bits: int = 3) -> dict[str, float]:
    """Both projections at one budget in bits."""
    budget = jpq_jax.Budget(bits=bits)
    joint = jpq_jax.project(params, budget)
    alternating = jpq_jax.project_alternating(params, budget, start_bits=start_bits)
    return {
        "budget_bits": bits,
        "joint_bits": jpq_jax.rate_bits(joint),
        "joint_distortion": distortion(params, joint),
        "alternating_distortion": distortion(params, alternating),
    }


def main(folder: tyro.conf.Positional[Path]) -> int:
    """Compares, prints a table, writes experiments/results/distortion.json and docs/distortion.png.

    Args:
      folder: where the checkpoints are.
    """
    rows, curves = [], []
    for checkpoint, authors in AUTHORS.items():
        tensors = load_file(folder / f"{checkpoint}.safetensors")
        params = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
        size = sum(leaf.size for leaf in kernels_of(params).values())
        for (density, bits), published in zip(POINTS, authors, strict=True):
            row = compare(params, budget_at(params, density, bits), start_bits=bits)
            row |= {"published_distortion": published}
            row |= {"joint_to_published": row["joint_distortion"] / published}
            rows.append({"checkpoint": checkpoint, "density": density, "bits": bits} | row)
        for ratio in _RATIOS:
            row = compare(params, 32 * size // ratio)
            curves.append({"checkpoint": checkpoint, "ratio": ratio} | row)
    logs = [math.log(row["joint_to_published"]) for row in rows]
    mean = math.exp(sum(logs) / len(logs))
    table = Table(title=f"relative distortion; geometric mean of joint to published: {mean:.4f}")
    shown = ("checkpoint", "budget_bits", "published_distortion", "joint_distortion")
    for name in (*shown, "joint_to_published"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = [f"{row[name]:.5g}" for name in (*shown[2:], "joint_to_published")]
        table.add_row(row["checkpoint"], f"{row['budget_bits']:,}", *cells)
    Console().print(table)
    result = {"rows": rows, "curves": curves, "geometric_mean": mean, **provenance()}
    write_json(RESULTS / "distortion.json", result)
    plots.draw_distortion(curves, FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.distortion"))
