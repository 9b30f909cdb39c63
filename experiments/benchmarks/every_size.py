"""python -m experiments.benchmarks.every_size FOLDER: post-training compression from 2 % of a checkpoint's bytes to bit-exact.

FOLDER holds lenet5_mnist, resnet20_cifar10 and resnet56_cifar10.safetensors; ResNet-20 is compressed in bfloat16 and float16, too, and an
embedding of 32,000 x 256 in float16 whose weights have heavy tails and whose tokens and channels differ in scale.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tyro
from rich.console import Console
from safetensors.numpy import load_file

import jpq_jax
from experiments import plots
from experiments.files import read_found, write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS
from jpq_jax.post_training import size_range

SHARES = (2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 100)  # percent
FIGURE = Path(__file__).parents[2] / "docs" / "sizes.png"
_TOKENS, _WIDTH = 32_000, 256

Tensors = dict[str, np.ndarray]


def checkpoints(folder: Path) -> dict[str, Tensors]:
    found = {
        name: load_file(folder / f"{name}.safetensors")
        for name in ("lenet5_mnist", "resnet20_cifar10", "resnet56_cifar10")
    }
    for dtype in (ml_dtypes.bfloat16, np.float16):
        cast = {name: _cast(x, dtype) for name, x in found["resnet20_cifar10"].items()}
        found[f"resnet20_cifar10 {np.dtype(dtype).name}"] = cast
    return found | {"embedding float16": {"embedding": embedding()}}


def embedding() -> np.ndarray:
    """Student's t of 4 degrees of freedom, by tokens and channels of different scales."""
    rng = np.random.default_rng(0)
    tokens = np.exp(0.4 * rng.standard_normal((_TOKENS, 1)))
    channels = np.exp(0.3 * rng.standard_normal(_WIDTH))
    return (0.03 * tokens * channels * rng.standard_t(4, (_TOKENS, _WIDTH))).astype(np.float16)


def _cast(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    return tensor.astype(dtype) if tensor.dtype == np.float32 else tensor


def exponent_entropy_bytes(tensors: Tensors) -> float:
    """With each kernel's exponents by their own frequencies, signs and mantissas as they are, and the other leaves as stored."""
    total = 0.0
    for tensor in tensors.values():
        if tensor.ndim < 2:
            total += tensor.nbytes
            continue
        digits = jax.numpy.finfo(tensor.dtype).nmant
        words = tensor.view(f"u{tensor.itemsize}").astype(np.int64).ravel()
        exponents = (words & ((1 << (8 * tensor.itemsize - 1)) - 1)) >> digits
        counts = np.bincount(exponents)
        counts = counts[counts > 0]
        bits = float(counts @ np.log2(tensor.size / counts)) + (1 + digits) * tensor.size
        total += bits / 8
    return total


def distortion(tensors: Tensors, codes: Any) -> float:
    """Squared error of the kernels relative to their squares, in float64."""
    error = total = 0.0
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            wide = tensor.astype(np.float64)
            back = np.asarray(jpq_jax.dequantize(codes[name])).astype(np.float64)
            error += float(((back - wide) ** 2).sum())
            total += float((wide**2).sum())
    return error / total


def measured(tensors: Tensors, share: int) -> dict[str, Any]:
    """At this share of the arrays' bytes."""
    nbytes = sum(x.nbytes for x in tensors.values()) * share // 100
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codes = jpq_jax.compress(tensors, jpq_jax.Budget(nbytes=nbytes))
    size = jpq_jax.artifact.file_bytes(codes)
    back = jpq_jax.dequantize(codes)
    is_exact = all(np.asarray(back[k]).tobytes() == x.tobytes() for k, x in tensors.items())
    return {
        "share": share,
        "nbytes": nbytes,
        "bytes": size,
        "distortion": distortion(tensors, codes),
        "exact": is_exact,
        "warned": bool(caught),
    }


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """What a user would not expect of the sizes of one checkpoint."""
    found = [f"{r['share']} %: exceeded" for r in rows if r["bytes"] > r["nbytes"]]
    found += [
        f"{r['share']} %: {r['bytes'] / r['nbytes']:.1%} used"
        for r in rows
        if r["bytes"] < 0.98 * r["nbytes"] and not r["exact"]
    ]
    return found + [
        f"{b['share']} %: error rises from {a['distortion']:.3g} to {b['distortion']:.3g}"
        for a, b in itertools.pairwise(rows)
        if b["distortion"] > 1.05 * a["distortion"]
    ]


def main(folder: tyro.conf.Positional[Path], only: str = "") -> int:
    """Measures, prints what is unexpected, writes experiments/results/every_size.json and docs/sizes.png; goes on where it was stopped.

    Args:
      folder: where the checkpoints are.
      only: one checkpoint.
    """
    path, console = RESULTS / "every_size.json", Console()
    found: dict[str, Any] = {} if only else read_found(path, {"shares": list(SHARES)}) or {}
    for name, tensors in checkpoints(folder).items():
        if name in found or (only and name != only):
            continue
        dense = sum(x.nbytes for x in tensors.values())
        rows = []
        for share in SHARES:
            rows.append(measured(tensors, share))
            console.print(name, rows[-1])
        lossless = size_range(tensors).lossless
        found[name] = {
            "dense": dense,
            "lossless": lossless,
            "exponent_entropy": exponent_entropy_bytes(tensors),
            "rows": rows,
        }
        ratio = lossless / found[name]["exponent_entropy"]
        console.print(f"{name}: bit-exact {lossless / dense:.2%}, {ratio:.4f} of the entropy")
        console.print(problems(rows) or "as expected")
        if not only:
            settings = {"shares": list(SHARES)}
            write_json(path, {"settings": settings, "found": found, **provenance()})
    if not only:
        plots.draw_sizes(found, FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.every_size"))
