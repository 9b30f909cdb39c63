"""python -m experiments.benchmarks.file_size FOLDER: post-training compression against NNCodec's, at its sizes.

FOLDER holds lenet5_mnist.safetensors and resnet20_cifar10.safetensors. NNCodec 2.1.3 is the reference software of ISO/IEC 15938-17;
what its files of these two checkpoints take, whole state dicts, and what their models are worth was measured beforehand.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

import jpq_jax
from experiments import data
from experiments.config import ModelName
from experiments.files import write_json
from experiments.model import Model, accuracy, build
from experiments.models.pytorch_weights import load_pytorch
from experiments.provenance import provenance
from experiments.publish import RESULTS

_CLOSE = 1e-3  # relative, of a distortion that is matched
_TRIALS = 12


class Point(NamedTuple):
    """What NNCodec reaches: bytes of its file, relative distortion over the kernels, test accuracy."""

    nbytes: int
    distortion: float
    accuracy: float


class Subject(NamedTuple):
    """A checkpoint."""

    model: ModelName
    dataset: str
    points: tuple[Point, ...]


NNCODEC = {
    "lenet5_mnist": Subject(
        "lenet5",
        "mnist",
        (
            Point(108_512, 0.02251, 0.9920),
            Point(48_683, 0.11212, 0.9912),
            Point(12_935, 0.30439, 0.9674),
            Point(4_348, 0.45867, 0.4246),
            Point(2_885, 0.55546, 0.0974),
        ),
    ),
    "resnet20_cifar10": Subject(
        "resnet20",
        "cifar10",
        (
            Point(185_826, 0.00037, 0.9228),
            Point(137_690, 0.00319, 0.9211),
            Point(98_154, 0.02023, 0.9100),
            Point(71_954, 0.06795, 0.8779),
            Point(57_976, 0.13005, 0.6242),
        ),
    ),
}

Tensors = dict[str, np.ndarray]


def compressed(tensors: Tensors, nbytes: int, path: Path) -> tuple[Tensors, int]:
    """The tensors as a file of at most so many bytes gives them back, and its size."""
    codes = jpq_jax.compress(tensors, jpq_jax.Budget(nbytes=nbytes))
    size = jpq_jax.artifact.save(path, codes)
    back = jpq_jax.dequantize(jpq_jax.artifact.load(path).codes)
    return jax.tree.map(np.asarray, back), size


def distortion(tensors: Tensors, back: Tensors) -> float:
    """Squared error of the kernels relative to their squares, in float64."""
    error = total = 0.0
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            wide = tensor.astype(np.float64)
            error += float(((back[name] - wide) ** 2).sum())
            total += float((wide**2).sum())
    return error / total


def bytes_at(tensors: Tensors, wanted: float, start: int, path: Path) -> float:
    """The size of file that has this distortion, between the two nearest found."""
    sizes: dict[int, float] = {}
    nbytes = start
    for _ in range(_TRIALS):
        back, size = compressed(tensors, nbytes, path)
        sizes[size] = distortion(tensors, back)
        if abs(sizes[size] / wanted - 1) < _CLOSE:
            return size
        below = max((n for n, d in sizes.items() if d > wanted), default=None)
        above = min((n for n, d in sizes.items() if d < wanted), default=None)
        if below is None or above is None:
            nbytes = int(size * (0.8 if below is None else 1.1))
            continue
        share = math.log(sizes[below] / wanted) / math.log(sizes[below] / sizes[above])
        between = below + share * (above - below)
        if above - below <= 2:
            return between
        nbytes = int(min(max(between, below + 1), above - 1))
    return float(nbytes)


def measure(subject: Subject, tensors: Tensors, model: Model, dataset: Any) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file, dense = Path(folder) / "model.jpq", Path(folder) / "model.safetensors"
        for point in subject.points:
            back, size = compressed(tensors, point.nbytes, file)
            save_file(back, dense)
            loaded = load_pytorch(subject.model, dense, model)
            equal = bytes_at(tensors, point.distortion, point.nbytes, file)
            rows.append(
                {
                    "nncodec_bytes": point.nbytes,
                    "nncodec_distortion": point.distortion,
                    "nncodec_accuracy": point.accuracy,
                    "bytes": size,
                    "distortion": distortion(tensors, back),
                    "accuracy": accuracy(loaded, loaded.variables, dataset, dataset.test),
                    "bytes_at_equal_distortion": equal,
                    "bytes_ratio": equal / point.nbytes,
                }
            )
    return rows


def main(folder: tyro.conf.Positional[Path], data_dir: str | None = None) -> int:
    """Compares, prints a table, writes experiments/results/file_size.json.

    Args:
      folder: where the checkpoints are.
      data_dir: where CIFAR-10 is.
    """
    rows = []
    for checkpoint, subject in NNCODEC.items():
        tensors = load_file(folder / f"{checkpoint}.safetensors")
        dataset = data.load(subject.dataset, data_dir if subject.dataset == "cifar10" else None)
        model = build(subject.model, seed=0)
        found = measure(subject, tensors, model, dataset)
        rows += [{"checkpoint": checkpoint} | row for row in found]
    mean = math.exp(sum(math.log(row["bytes_ratio"]) for row in rows) / len(rows))
    table = Table(title=f"bytes at equal distortion, geometric mean: {mean:.3f} of NNCodec's")
    for name in ("checkpoint", "bytes", "distortion", "NNCodec's", "test accuracy", "NNCodec's"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["checkpoint"],
            f"{row['bytes']:,} / {row['nncodec_bytes']:,}",
            f"{row['distortion']:.5f}",
            f"{row['nncodec_distortion']:.5f}",
            f"{row['accuracy']:.2%}",
            f"{row['nncodec_accuracy']:.2%}",
        )
    Console().print(table)
    result = {"rows": rows, "geometric_mean": mean, **provenance()}
    write_json(RESULTS / "file_size.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.file_size"))
