"""python -m experiments.benchmarks.codec FOLDER: how fast the codec alone is, from codes in memory to bytes and back.

AlexNet's shapes at a density of 5 %, and the checkpoints lenet5_mnist.safetensors and resnet20_cifar10.safetensors in FOLDER at sizes
of NNCodec's files. With --peer=PYTHON, an interpreter that has NNCodec (pip install nncodec==2.1.3), that is timed in the same run:
from float32 weights to bytes and back, as it offers no less.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

import jpq_jax
from experiments.benchmarks.projection import CASES, seconds, weights_of
from experiments.files import write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS

_DENSITY = 0.05
_BITS = 3
_SIZES = {"lenet5_mnist": (48_683, -26), "resnet20_cifar10": (98_154, -20)}  # and NNCodec's qp
_REPEATS = 7

_PEER = """
import json, statistics, sys, time
from nncodec import nn
from safetensors.numpy import load_file
tensors, settings = load_file(sys.argv[1]), dict(qp=int(sys.argv[2]), results=sys.argv[4], verbose=False)
encode, decode = [], []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter(); data = nn.encode(dict(tensors), settings); encode.append(time.perf_counter() - start)
    start = time.perf_counter(); nn.decode(data, settings); decode.append(time.perf_counter() - start)
print(json.dumps({"bytes": len(data), "encode": statistics.median(encode), "decode": statistics.median(decode)}))
"""


def alexnet() -> Any:
    weights = weights_of(next(case.shapes for case in CASES if case.name == "AlexNet"))
    size = sum(weight.size for weight in weights)
    return jpq_jax.project(weights, jpq_jax.Budget(bits=int(_BITS * _DENSITY * size)))


def timed(codes: Any) -> dict[str, Any]:
    data = jpq_jax.artifact.encode(codes)
    rates = jpq_jax.account(codes)
    weights = sum(rate.weights for rate in rates)
    encode = seconds(lambda: jpq_jax.artifact.encode(codes), _REPEATS)
    decode = seconds(lambda: jpq_jax.artifact.decode(data).codes, _REPEATS)
    return {
        "megabytes": 4e-6 * weights,
        "density": sum(rate.nonzeros for rate in rates) / weights,
        "bytes": len(data),
        "encode_seconds": encode,
        "decode_seconds": decode,
        "encode_mb_per_second": 4e-6 * weights / encode,
        "decode_mb_per_second": 4e-6 * weights / decode,
    }


def of_peer(python: Path, checkpoint: Path, qp: int, scratch: Path) -> dict[str, Any]:
    arguments = [str(checkpoint), str(qp), str(_REPEATS), str(scratch)]
    done = subprocess.run(
        [str(python), "-c", _PEER, *arguments], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {f"nncodec_{key}": value for key, value in found.items()}


def main(
    folder: tyro.conf.Positional[Path], peer: Path | None = None, scratch: Path = Path("work")
) -> int:
    """Times, prints a table, writes experiments/results/codec.json.

    Args:
      folder: where the checkpoints are.
      peer: a Python interpreter that has NNCodec.
      scratch: where NNCodec may write.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {"alexnet": timed(alexnet())}
    for name, (nbytes, qp) in _SIZES.items():
        checkpoint = folder / f"{name}.safetensors"
        codes = jpq_jax.compress(load_file(checkpoint), jpq_jax.Budget(nbytes=nbytes))
        rows[name] = timed(codes)
        if peer:
            rows[name] |= of_peer(peer, checkpoint, qp, scratch)
    table = Table(title="the codec alone: seconds, and MB of float32 weights a second")
    for heading in ("model", "MB", "bytes", "encode", "decode", "NNCodec's bytes", "its", "its"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        peers = [row.get(f"nncodec_{key}") for key in ("bytes", "encode", "decode")]
        table.add_row(
            name,
            f"{row['megabytes']:.1f}",
            f"{row['bytes']:,}",
            f"{row['encode_seconds']:.4f} ({row['encode_mb_per_second']:.0f})",
            f"{row['decode_seconds']:.4f} ({row['decode_mb_per_second']:.0f})",
            *("" if value is None else f"{value:,.4g}" for value in peers),
        )
    Console().print(table)
    write_json(RESULTS / "codec.json", {"rows": rows, **provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.codec"))
