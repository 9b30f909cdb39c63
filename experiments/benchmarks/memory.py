"""python -m experiments.benchmarks.memory: what post-training compression holds in memory, by the checkpoint's size.

A transformer encoder of 22 M weights in float32, as all-MiniLM-L6-v2, random. Each size of file is made in a process of its own;
what Python and JAX take before the checkpoint is opened is told apart.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from safetensors.numpy import save_file

from experiments.files import write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS
from jpq_jax import cli

SHARES = (2, 10, 23, 40, 60, 80, 100)  # percent
_TOKENS, _WIDTH, _LAYERS = 30_522, 384, 6


def encoder() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {"embeddings.weight": 0.05 * rng.standard_t(5, (_TOKENS, _WIDTH))}
    shapes = dict.fromkeys(("query", "key", "value", "output"), (_WIDTH, _WIDTH))
    shapes |= {"up": (4 * _WIDTH, _WIDTH), "down": (_WIDTH, 4 * _WIDTH)}
    for layer in range(_LAYERS):
        for name, shape in shapes.items():
            tensors[f"layers.{layer}.{name}.weight"] = 0.04 * rng.standard_normal(shape)
            tensors[f"layers.{layer}.{name}.bias"] = 0.01 * rng.standard_normal(shape[0])
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def peak() -> int:
    """Bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compressed(checkpoint: Path, share: int) -> dict[str, Any]:
    """By `jpq compress`, in this process, which has done nothing else."""
    jnp.ones(3).block_until_ready()
    before = peak()
    dense, output = checkpoint.stat().st_size, checkpoint.with_suffix(".jpq")
    start = time.perf_counter()
    command = ["compress", str(checkpoint), "-o", str(output), "--force"]
    if cli.main([*command, "--bytes", str(dense * share // 100)]):
        raise RuntimeError(f"jpq compress failed at {share} %")
    return {
        "share": share,
        "dense": dense,
        "bytes": output.stat().st_size,
        "before": before,
        "peak": peak(),
        "seconds": time.perf_counter() - start,
    }


def main(child: Path | None = None, share: int = 0) -> int:
    """Measures, prints, writes experiments/results/memory.json.

    Args:
      child: the checkpoint, in a process that measures itself.
      share: of the checkpoint's bytes that such a process is to write, in percent.
    """
    if child is not None:
        print(json.dumps(compressed(child, share)))
        return 0
    rows, console = [], Console()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.safetensors"
        save_file(encoder(), checkpoint)
        for each in SHARES:
            command = [sys.executable, "-m", "experiments.benchmarks.memory"]
            command += ["--child", str(checkpoint), "--share", str(each)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(run.stdout.splitlines()[-1])
            rows.append(row)
            own = (row["peak"] - row["before"]) / row["dense"]
            whole = row["peak"] / row["dense"]
            console.print(
                f"{each} %: {own:.2f} x the checkpoint, {whole:.2f} x with Python and JAX, "
                f"{row['seconds']:.0f} s"
            )
    write_json(RESULTS / "memory.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.memory"))
