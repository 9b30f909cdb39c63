"""Tables for terminals, pipes and files alike: one line a leaf, names whole at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len

from jpq_jax.cli.messages import printable
from jpq_jax.report import FileReport, LeafDifference, overall

_LEFT = ("leaf", "stored")


def file_table(found: FileReport) -> list[str]:
    """The lines that show what a file holds."""
    header = ["leaf", "shape", "bits", "density", "bytes", "share", "distortion", "stored"]
    rows = [
        [
            leaf.path,
            _shape(leaf.shape),
            str(leaf.bits),
            f"{leaf.density:.2%}",
            f"{leaf.nbytes:,}",
            f"{leaf.share:.1%}",
            "" if leaf.distortion is None else f"{leaf.distortion:.2g}",
            leaf.stored or "",
        ]
        for leaf in found.leaves
    ]
    return [*_aligned(header, rows), "", _file_total(found)]


def _file_total(found: FileReport) -> str:
    parts = [
        f"{found.nbytes:,} bytes, of which {found.container:,} are names, shapes and checksum",
        f"{found.dense_bytes / found.nbytes:,.1f}x smaller",
    ]
    if found.distortion is not None:
        parts.append(f"distortion {found.distortion:.3g}")
    if math.isfinite(found.paper_ratio):  # some leaf is compressed, and not all of it zero
        parts.append(f"{found.paper_ratio:,.0f}x in bits x nonzeros")
    return f"total: {'; '.join(parts)}"


def difference_table(found: Sequence[LeafDifference], sizes: tuple[int, int]) -> list[str]:
    """The lines that show how far two models are apart.

    Args:
      found: leaf by leaf.
      sizes: bytes that the two take on disk.
    """
    header = ["leaf", "shape", "relative squared error", "largest difference"]
    rows = [
        [each.path, _shape(each.shape), f"{each.relative:.3g}", f"{each.largest:.3g}"]
        for each in found
    ]
    largest = max((each.largest for each in found), default=0.0)
    first, second = sizes
    total = (
        f"total: relative squared error {overall(found):.3g}, largest difference {largest:.3g}; "
        f"{first:,} and {second:,} bytes on disk, ratio {first / max(second, 1):,.2f}"
    )
    return [*_aligned(header, rows), "", total]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of columns, words to the left and numbers to the right."""
    lines = [header, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell + padding if name in _LEFT else padding + cell
            for name, cell, padding in zip(header, line, _paddings(line, widths), strict=True)
        ).rstrip()
        for line in lines
    ]


def _paddings(line: list[str], widths: list[int]) -> list[str]:
    """By cells of a terminal, of which some characters take two and some none."""
    return [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
