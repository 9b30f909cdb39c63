"""python -m experiments.evaluate ARTIFACT: decodes a file, rebuilds its model, measures it on the test images."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import tyro

import jpq_jax
from experiments import data
from experiments.model import accuracy, build


def measure(path: str | Path, data_dir: str | None = None) -> dict[str, Any]:
    """What the file is worth: nothing is taken from anywhere else than the file and the data set.

    Returns:
      dataset, model and config by name; accuracy on the test images; baseline_accuracy, of the dense model
      it was made from, as noted in the file; file_bytes; true_ratio, all parameters in float32 over the
      file; paper_ratio, sum 32 n over sum b nnz of the kernels; pruning_ratio, sum n over sum nnz.

    Raises:
      ValueError: if the file is damaged, or says nothing of its model or data set.
    """
    extras = jpq_jax.artifact.load(path).extras
    missing = {"model", "dataset", "config", "baseline_accuracy"} - set(extras)
    if missing:
        raise ValueError(
            f"{path}: its extras lack {sorted(missing)}; not a file of experiments.run"
        )
    model = build(extras["model"], seed=0)
    codes, _, file_bytes = jpq_jax.artifact.load(path, like=model.variables)
    dataset = data.load(extras["dataset"], data_dir)
    rates = jpq_jax.account(codes)
    kernels = [rate for rate in rates if rate.compressed]
    nonzeros = sum(rate.nonzeros for rate in kernels)
    return {
        "dataset": extras["dataset"],
        "model": extras["model"],
        "config": extras["config"],
        "accuracy": accuracy(model, jpq_jax.dequantize(codes), dataset, dataset.test),
        "baseline_accuracy": extras["baseline_accuracy"],
        "file_bytes": file_bytes,
        "true_ratio": 4 * sum(rate.weights for rate in rates) / file_bytes,
        "paper_ratio": jpq_jax.paper_ratio(codes),
        "pruning_ratio": sum(rate.weights for rate in kernels) / nonzeros if nonzeros else math.inf,
    }


def main(artifact: tyro.conf.Positional[Path], data_dir: str | None = None) -> int:
    """Decodes a compressed model, rebuilds it, and prints one JSON line.

    Args:
      artifact: the file.
      data_dir: where the data set is, if it is not the embedded one.
    """
    try:
        print(json.dumps(measure(artifact, data_dir)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.evaluate"))
