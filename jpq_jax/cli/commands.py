"""The commands, each a dataclass of its arguments."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jpq_jax import artifact, post_training, report
from jpq_jax.checkpoint import read_checkpoint, write_safetensors
from jpq_jax.cli import progress
from jpq_jax.cli.arguments import check_input, output_place, ratio_of, size_of
from jpq_jax.cli.messages import printable
from jpq_jax.cli.tables import difference_table, file_table
from jpq_jax.vocabulary import Budget, PyTree, dequantize

Place = tyro.conf.Positional[Path]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


def _text(metavar: str) -> Any:
    """An option that takes text, also the text "None"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclasses.dataclass
class Compress:
    """Compress a checkpoint to a target size, without data. Everything in the file counts: biases,
    norms and statistics are rounded under the same budget. For example:
    jpq compress model.safetensors -o model.jpq --bytes 100KB
    """

    checkpoint: Place
    """A checkpoint: a file or a folder."""
    output: Out
    """The .jpq file to write."""
    bytes: Annotated[str | None, _text("SIZE"), tyro.conf.DisallowNone] = None
    """Limit of the file's size, everything in it counted, in bytes or with a unit: 50000, 1e5,
    50KB. KB, MB, GB are powers of 1000; KiB, MiB, GiB powers of 1024."""
    ratio: Annotated[str | None, _text("RATIO"), tyro.conf.DisallowNone] = None
    """Instead: how many times smaller than the checkpoint's arrays, as 20 or 20x."""
    lossless: bool = False
    """Instead: the smallest file that gives the checkpoint back bit for bit."""
    only: Annotated[str | None, _text("NAME"), tyro.conf.DisallowNone] = None
    """Take this part of the checkpoint alone, for example params."""
    dry_run: bool = False
    """Show the size of each leaf and which sizes are possible; write nothing."""
    force: bool = False
    """Overwrite what is there, even the input."""

    def run(self) -> None:
        limit = self._limit()
        check_input(self.checkpoint)
        place = output_place(self.output, [self.checkpoint], force=self.force)
        params = read_checkpoint(self.checkpoint, lazy=not self.lossless, only=self.only)
        dense = _dense_bytes(params)
        nbytes = int(dense / limit) if isinstance(limit, Fraction) else limit
        codes = params if nbytes is None else _compressed(params, nbytes)
        if self.dry_run:
            self._show(params, codes)
            return
        # Before it is saved, which may overwrite what is yet to be read of the checkpoint.
        error = 0.0 if self.lossless else report.overall(report.differences(params, codes))
        size = artifact.save(place, codes)
        limited = f"{size:,}" if nbytes is None else f"{size:,} of {nbytes:,}"
        loss = f"relative squared error {error:.3g}" if error else "without loss"
        print(f"{_name(self.output)}: {limited} bytes, {dense / size:,.1f}x smaller, {loss}")

    def _limit(self) -> int | Fraction | None:
        """Bytes, a ratio, or none for a lossless file."""
        if (self.bytes is not None) + (self.ratio is not None) + self.lossless != 1:
            raise ValueError("expected one of --bytes and --ratio, or --lossless")
        if self.bytes is not None:
            return size_of(self.bytes)
        return None if self.ratio is None else ratio_of(self.ratio)

    def _show(self, params: PyTree, codes: PyTree) -> None:
        found = report.report_of(codes, reference=params)
        least, lossless = post_training.size_range(params)
        print("\n".join(file_table(found)))
        print(f"possible: {least:,} bytes (all zero) to {lossless:,} bytes (lossless)")
        print("nothing was written")


@dataclasses.dataclass
class Decompress:
    """Write the weights of a .jpq file as dense safetensors, with zeros for pruned ones."""

    file: Place
    """The .jpq file."""
    output: Out
    """The safetensors file to write."""
    pytorch: bool = False
    """Turn Flax's names and layouts into PyTorch's."""
    force: bool = False
    """Overwrite what is there, even the input."""

    def run(self) -> None:
        check_input(self.file)
        place = output_place(self.output, [self.file], force=self.force)
        dense = dequantize(artifact.load(self.file).codes)
        size = write_safetensors(place, dense, pytorch=self.pytorch)
        print(f"{_name(self.output)}: {size:,} bytes")


@dataclasses.dataclass
class Inspect:
    """Show what a .jpq file holds, leaf by leaf."""

    file: Place
    """The .jpq file."""
    reference: Annotated[
        Path | None, tyro.conf.arg(help_behavior_hint=""), tyro.conf.DisallowNone
    ] = None
    """The checkpoint that it was made of, for the distortions."""
    only: Annotated[str | None, _text("NAME"), tyro.conf.DisallowNone] = None
    """The part of the checkpoint that was taken."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        check_input(self.file, self.reference)
        found = report.inspect(self.file, self.reference, only=self.only)
        if self.json:
            _print_json(found._asdict() | {"leaves": [leaf._asdict() for leaf in found.leaves]})
        else:
            print("\n".join(file_table(found)))


@dataclasses.dataclass
class Compare:
    """Show leaf by leaf how far one model is from another: checkpoints or .jpq files."""

    first: Place
    second: Place
    only: Annotated[str | None, _text("NAME"), tyro.conf.DisallowNone] = None
    """Take this part of a checkpoint alone; .jpq files are taken whole."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        check_input(self.first, self.second)
        found = report.compare(self.first, self.second, only=self.only)
        if self.json:
            _print_json([each._asdict() for each in found])
        else:
            sizes = (_size_on_disk(self.first), _size_on_disk(self.second))
            print("\n".join(difference_table(found, sizes)))


Command = Compress | Decompress | Inspect | Compare


def _compressed(params: PyTree, nbytes: int) -> PyTree:
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    with progress.shown(sizes) as reported:
        return post_training.compress(params, Budget(nbytes=nbytes), progress=reported)


def _name(place: Path) -> str:
    return printable(str(place))


def _dense_bytes(params: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _size_on_disk(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
