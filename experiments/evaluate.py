"""python -m experiments.evaluate ARTIFACT: decodes a file, rebuilds its model, measures it on the test images."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

import jpq_jax
from experiments import data
from experiments.facts import FACTS, facts_of
from experiments.model import accuracy, build, refilled


class Count(NamedTuple):
    """Of all kernels together.

    Attributes:
      weights: how many there are.
      nonzeros: how many are not zero.
      bits: sum of b x nonzeros, the paper metric; b is 32 where a kernel is only pruned.
    """

    weights: int
    nonzeros: int
    bits: int


def count_kernels(codes: Any) -> Count:
    """Whether they are `Codes` or arrays."""
    plan = jpq_jax.plan_leaves(jpq_jax.dequantize(codes))
    weights = nonzeros = bits = 0
    for rate, leaf_plan in zip(jpq_jax.account(codes), plan, strict=True):
        if rate.compressed or leaf_plan.compress:
            weights += rate.weights
            nonzeros += rate.nonzeros
            bits += rate.nonzeros * rate.bits
    return Count(weights, nonzeros, bits)


def measure(
    path: str | Path, data_dir: str | None = None, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the file is worth: all of the model is taken from it.

    Args:
      path: of the file.
      data_dir: where the data set is, if it is not the embedded one.
      about: what `facts_of` returns, where it cannot find it yet.

    Returns:
      dataset, model and config by name; accuracy on the test images; baseline_accuracy, of the dense model
      it was made from, as noted; file_bytes; true_ratio, all parameters in float32 over the
      file; paper_ratio, sum 32 n over sum b nnz of the kernels; pruning_ratio, sum n over sum nnz.

    Raises:
      ValueError: if the file is damaged, or nothing says what its model or data set is.
    """
    facts = facts_of(Path(path), (about or {}) | jpq_jax.artifact.load(path).extras)
    model = build(facts["model"], seed=0, units=facts.get("units"))
    # A model that channels were taken out of has its shapes in the file.
    like = None if "macs" in facts else model.variables
    codes, _, file_bytes = jpq_jax.artifact.load(path, like=like)
    codes = codes if like is not None else refilled(model, codes).variables
    dataset = data.load(facts["dataset"], data_dir)
    count, dense = count_kernels(codes), count_kernels(model.variables)
    return {
        **{fact: facts[fact] for fact in (*FACTS, "units", "macs") if fact in facts},
        "accuracy": accuracy(model, jpq_jax.dequantize(codes), dataset, dataset.test),
        "file_bytes": file_bytes,
        "true_ratio": 4 * sum(leaf.size for leaf in jax.tree.leaves(model.variables)) / file_bytes,
        "paper_ratio": 32 * dense.weights / count.bits if count.bits else math.inf,
        "pruning_ratio": dense.weights / count.nonzeros if count.nonzeros else math.inf,
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
