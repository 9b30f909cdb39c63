"""`jpq`: compress a checkpoint to so many bytes, turn it back, look into a file, compare two."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jpq_jax import artifact, report
from jpq_jax.checkpoint import read_checkpoint, write_safetensors
from jpq_jax.post_training import Progress as Told
from jpq_jax.post_training import compress
from jpq_jax.vocabulary import Budget, dequantize

_EXAMPLES = """
examples:
  jpq compress model.safetensors -o model.jpq --bytes 100000
  jpq compress checkpoints/step_9000 -o model.jpq --ratio 20
  jpq decompress model.jpq -o dense.safetensors
  jpq inspect model.jpq --reference model.safetensors
  jpq compare model.safetensors model.jpq
"""

Place = tyro.conf.Positional[Path]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclasses.dataclass
class Compress:
    """Writes a checkpoint as a file of at most so many bytes, without data.

    Biases, norms and statistics are rounded under the same budget. jpq compress model.safetensors -o model.jpq --bytes 100000
    """

    checkpoint: Place
    """A safetensors file or an orbax checkpoint folder."""
    output: Out
    """The .jpq file to be written."""
    bytes: int | None = None
    """How big it may be, everything in it counted."""
    ratio: float | None = None
    """Instead: how many times smaller than the checkpoint's arrays."""

    def run(self, console: Console) -> None:
        if (self.bytes is None) == (self.ratio is None):
            raise ValueError("expected one of --bytes and --ratio")
        params = read_checkpoint(self.checkpoint, lazy=True)
        dense = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        nbytes = self.bytes if self.bytes is not None else _of_ratio(dense, self.ratio)
        with _progress(console) as told:
            codes = compress(params, Budget(nbytes=nbytes), progress=told)
        size = artifact.save(self.output, codes)
        console.print(f"{self.output}: {size:,} of {nbytes:,} bytes, {dense / size:,.1f}x smaller")


@dataclasses.dataclass
class Decompress:
    """Writes what a .jpq file stands for as dense safetensors, with zeros for pruned weights."""

    file: Place
    """The .jpq file."""
    output: Out
    """The safetensors file to be written."""
    pytorch: bool = False
    """Turn Flax's names and layouts into PyTorch's."""

    def run(self, console: Console) -> None:
        dense = dequantize(artifact.load(self.file).codes)
        size = write_safetensors(self.output, dense, pytorch=self.pytorch)
        console.print(f"{self.output}: {size:,} bytes")


@dataclasses.dataclass
class Inspect:
    """Shows what a .jpq file holds, leaf by leaf."""

    file: Place
    """The .jpq file."""
    reference: Path | None = None
    """The checkpoint that it was made of, for the distortions."""
    json: bool = False
    """Print JSON."""

    def run(self, console: Console) -> None:
        found = report.inspect(self.file, self.reference)
        if self.json:
            leaves = [leaf._asdict() for leaf in found.leaves]
            print(json.dumps(_finite(found._asdict() | {"leaves": leaves})))
            return
        console.print(_table_of(found))
        console.print(
            f"{found.nbytes:,} bytes, of which {found.container:,} are names, shapes and checksum; "
            f"{found.dense_bytes / found.nbytes:,.1f}x smaller; {found.paper_ratio:,.0f}x in bits x nonzeros"
        )


@dataclasses.dataclass
class Compare:
    """Shows leaf by leaf how far one model is from another: .jpq files, safetensors or orbax folders."""

    first: Place
    second: Place
    json: bool = False
    """Print JSON."""

    def run(self, console: Console) -> None:
        found = report.compare(self.first, self.second)
        if self.json:
            print(json.dumps([_finite(each._asdict()) for each in found]))
            return
        table = Table()
        table.add_column("leaf", overflow="fold")
        for name in ("shape", "relative squared error", "largest difference"):
            table.add_column(name, justify="right")
        for each in found:
            numbers = (f"{each.relative:.3g}", f"{each.largest:.3g}")
            table.add_row(each.path, _shape(each.shape), *numbers)
        console.print(table)


Command = Compress | Decompress | Inspect | Compare


def main(args: list[str] | None = None) -> int:
    """The command line; 0 if it went well, 2 if the input was at fault, 130 if it was interrupted."""
    command = tyro.cli(
        Annotated[Command, tyro.conf.OmitSubcommandPrefixes],  # pyright: ignore[reportArgumentType]
        prog="jpq",
        description=(__doc__ or "") + _EXAMPLES,
        args=args,
    )
    _return_freed_memory()
    console = Console(stderr=True) if getattr(command, "json", False) else Console()
    try:
        command.run(console)
    except (ValueError, TypeError, OSError) as error:
        print(f"jpq: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jpq: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def _return_freed_memory() -> None:
    """At once, for blocks of 1 MB and more. By itself glibc comes to keep those of up to 32 MB, in all as much as the model takes."""
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**20)


def _of_ratio(dense: int, ratio: float | None) -> int:
    if ratio is None or not ratio > 0:
        raise ValueError(f"got --ratio {ratio}, expected a positive number")
    return int(dense / ratio)


@contextmanager
def _progress(console: Console) -> Iterator[Told]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading")

        def told(round_: int, done: int, total: int) -> None:
            bar.update(task, description=f"round {round_}", completed=done, total=total)

        yield told


def _table_of(found: report.FileReport) -> Table:
    table = Table()
    table.add_column("leaf", overflow="fold", min_width=16)
    for name in ("shape", "bits", "density", "bytes", "share", "distortion"):
        table.add_column(name, justify="right")
    table.add_column("stored")
    for leaf in found.leaves:
        table.add_row(
            leaf.path,
            _shape(leaf.shape),
            str(leaf.bits),
            f"{leaf.density:.2%}",
            f"{leaf.nbytes:,}",
            f"{leaf.share:.1%}",
            "" if leaf.distortion is None else f"{leaf.distortion:.2g}",
            leaf.stored or "",
        )
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


if __name__ == "__main__":
    sys.exit(main())
