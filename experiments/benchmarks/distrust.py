"""python -m experiments.benchmarks.distrust FILE ...: damaged and forged files, all of which must be refused or read without harm.

Of each file every change of a single byte, every truncation, and random changes under a right checksum, as a forger would make
them. Prints what happened, and the memory that it took; writes experiments/results/distrust.json.
"""

from __future__ import annotations

import itertools
import random
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track

import jpq_jax
from experiments.files import write_json
from experiments.provenance import provenance
from experiments.publish import RESULTS

_CHECKSUM = slice(4, 8)  # since version 2
_SLOW = 2.0  # seconds that no file of some kB may take


def changed(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for value in range(256):
            if value != data[place]:
                yield data[:place] + bytes([value]) + data[place + 1 :]


def truncated(data: bytes) -> Iterator[bytes]:
    return (data[:length] for length in range(len(data)))


def forged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Some bytes changed, or a piece cut out or put in twice; then the checksum made right."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(count):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(8, len(bad))] = rng.randrange(256)
        if rng.random() < 0.2:
            start = rng.randrange(8, len(bad))
            end = min(len(bad), start + rng.randint(1, 8))
            bad[start:end] = b"" if rng.random() < 0.5 else 2 * bad[start:end]
        bad[_CHECKSUM] = zlib.crc32(bad[8:], zlib.crc32(bad[:4])).to_bytes(4, "little")
        yield bytes(bad)


def outcome(data: bytes) -> str:
    try:
        jpq_jax.artifact.decode(data)
    except ValueError:
        return "refused"
    return "read"


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(files: tyro.conf.Positional[list[Path]], forgeries: int = 100_000) -> int:
    """Goes through all, and fails if one is read that was only damaged, or takes too long.

    Args:
      files: artifacts of version 2 or later.
      forgeries: of all files together.
    """
    counts: Counter[str] = Counter()
    slowest = 0.0
    start = [path.read_bytes() for path in files]
    for data in start:
        jpq_jax.artifact.decode(data)
    before = peak()
    for path, data in zip(files, start, strict=True):
        number = 256 * len(data)
        damaged = itertools.chain(changed(data), truncated(data))
        for bad in track(damaged, f"{path.name}, damaged", total=number):
            counts[f"damaged, {outcome(bad)}"] += 1
        share = forgeries // len(files) + 1
        for bad in track(forged(data, share, seed=0), f"{path.name}, forged", total=share):
            began = time.perf_counter()
            counts[f"forged, {outcome(bad)}"] += 1
            slowest = max(slowest, time.perf_counter() - began)
    result = {
        "files": {path.name: len(data) for path, data in zip(files, start, strict=True)},
        "counts": dict(counts),
        "slowest_seconds": slowest,
        "memory_bytes": peak() - before,
    }
    Console().print(result)
    write_json(RESULTS / "distrust.json", result | provenance())
    return int(bool(counts["damaged, read"]) or slowest > _SLOW)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.distrust"))
