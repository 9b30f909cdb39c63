"""Two processes of four devices train what one of eight does, and write it once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from compiled import QUICKLY
from test_imagenet import write_folder

import jpq_jax

ROOT = Path(__file__).parent.parent

# A network small enough for a test, in the place of AlexNet.
RUN = """
import sys
import jax.numpy as jnp
from flax import nnx
from experiments import model, run

class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, images):
        return self.linear(jnp.mean(images, axis=(1, 2)))

model._MODELS["alexnet"] = Tiny
sys.exit(run.main(sys.argv[1:]))
"""


def start(
    workdir: Path, images: Path, devices: int, epochs: int, **variables: str
) -> subprocess.Popen[str]:
    options = ["--ratio=8", "--batch_size=16", "--ramp_epochs=0", "--finetune_epochs=0"]
    options += [f"--data_dir={images}", f"--workdir={workdir}", "--dense_epochs=1"]
    options += [f"--epochs={epochs}", "--distributed" if variables else "--no-distributed"]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "alexnet_imagenet", *options],
        cwd=ROOT,
        env=os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}",
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def together(workdir: Path, images: Path, epochs: int) -> list[str]:
    """What two processes print that find each other as Slurm's do."""
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),  # of which the port is made
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
    }
    both = [start(workdir, images, 4, epochs, **slurm, SLURM_PROCID=str(i)) for i in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)
    return printed


def test_two_processes_are_as_one(tmp_path: Path):
    images = write_folder(tmp_path / "images", 20)
    first, second = together(tmp_path / "two", images, epochs=2)
    assert "test accuracy, compressed file" in first
    assert "epoch" not in second
    alone = start(tmp_path / "one", images, 8, epochs=2)
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, output
    found, expected = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one")
    )
    losses = [[row["loss"] for row in results["epochs"]] for results in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    trees = [
        jpq_jax.dequantize(jpq_jax.artifact.load(tmp_path / name / "artifact.jpq").codes)
        for name in ("two", "one")
    ]
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
