"""python -m experiments.benchmarks.published_projections FOLDER: the published projections against the authors' own.

FOLDER holds lenet5_mnist.safetensors and resnet20_cifar10.safetensors. The authors' distortions were measured with
their code: their two projections alternated three times, the best kept.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

import jpq_jax
from experiments.files import write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS

POINTS = ((0.0054, 3), (0.05, 3), (0.2, 4), (0.5, 4))
AUTHORS = {
    "lenet5_mnist": (0.48477, 0.20154, 0.07622, 0.01584),
    "resnet20_cifar10": (0.78122, 0.52141, 0.22125, 0.03783),
}


def kernels_of(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What is compressed by default."""
    return {name: leaf for name, leaf in params.items() if leaf.ndim >= 2}


def budget_at(params: dict[str, jax.Array], density: float, bits: int) -> int:
    """As the authors state a budget, in bits."""
    return bits * sum(math.ceil(density * leaf.size) for leaf in kernels_of(params).values())


def distortion(params: dict[str, jax.Array], codes: Any) -> float:
    """Relative squared error over the kernels."""
    kernels, found = kernels_of(params), jpq_jax.dequantize(codes)
    lost = sum(float(jnp.sum((found[name] - leaf) ** 2)) for name, leaf in kernels.items())
    return lost / sum(float(jnp.sum(leaf**2)) for leaf in kernels.values())


def measure(
    checkpoint: str, params: dict[str, jax.Array], density: float, bits: int
) -> dict[str, Any]:
    """One row: relative squared error over the kernels at one budget, and the warm time."""
    limit = budget_at(params, density, bits)

    def project() -> Any:
        budget = jpq_jax.Budget(bits=limit)
        return jax.block_until_ready(
            jpq_jax.project_alternating(params, budget, start_bits=bits, rounds=3)
        )

    codes = project()
    started = time.perf_counter()
    project()
    seconds = time.perf_counter() - started
    return {
        "checkpoint": checkpoint,
        "density": density,
        "bits": bits,
        "budget_bits": limit,
        "spent_bits": jpq_jax.rate_bits(codes, "paper"),
        "distortion": distortion(params, codes),
        "seconds": seconds,
    }


def main(folder: tyro.conf.Positional[Path]) -> int:
    """Compares on both checkpoints at four budgets each.

    Args:
      folder: where the checkpoints are.
    """
    rows = []
    for checkpoint, distortions in AUTHORS.items():
        tensors = load_file(folder / f"{checkpoint}.safetensors")
        params = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
        for (density, bits), published in zip(POINTS, distortions, strict=True):
            row = measure(checkpoint, params, density, bits)
            row |= {"published_distortion": published, "ratio": row["distortion"] / published}
            rows.append(row)
    table = Table(title="relative distortion: the authors' projections, and ours")
    shown = ("checkpoint", "density", "bits", "published_distortion", "distortion", "ratio")
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(
            *(f"{row[name]:.5g}" if name in shown[3:] else str(row[name]) for name in shown)
        )
    Console().print(table)
    write_json(RESULTS / "published_projections.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.published_projections"))
