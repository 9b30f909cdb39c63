"""Figures, as PNG: of a run its accuracy and size over training, and bits and density per layer; of many, one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure  # without pyplot: no display, no global state

from jpq_jax.vocabulary import MAX_BITS

_ACCURACY, _SIZE = "tab:blue", "tab:orange"


def draw_history(history: list[dict[str, Any]], path: Path) -> None:
    """Validation error and paper-metric ratio by epoch."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    errors = figure.subplots()
    epochs = [row["epoch"] for row in history]
    wrong = [100 * (1 - row["validation_accuracy"]) for row in history]
    errors.semilogy(epochs, wrong, "o-", color=_ACCURACY, markersize=3)
    errors.yaxis.set_major_formatter("{x:g}")
    errors.yaxis.set_minor_formatter("")
    errors.set(xlabel="epoch", title="Validation error and size over training")
    errors.set_ylabel("validation error, %", color=_ACCURACY)
    sizes = errors.twinx()
    compressed = [row for row in history if "paper_ratio" in row]
    ratios = [row["paper_ratio"] for row in compressed]
    sizes.plot([row["epoch"] for row in compressed], ratios, "s-", color=_SIZE, markersize=3)
    sizes.set_ylabel("paper-metric ratio", color=_SIZE)
    sizes.set_ylim(bottom=0)
    first = compressed[0]["epoch"]
    if first > epochs[0]:
        errors.axvline(first - 0.5, color="grey", linestyle=":")
        corner = (first - 0.4, errors.get_ylim()[0])
        errors.annotate("compression starts", corner, rotation=90, va="bottom", ha="left")
    figure.savefig(path, dpi=120)


def draw_layers(leaves: list[dict[str, Any]], path: Path) -> None:
    """Bits per nonzero and share of nonzeros of each compressed leaf."""
    rows = [row for row in leaves if row.get("compressed")]
    names = [row["path"] for row in rows]
    figure = Figure(figsize=(max(6, 1.2 * len(rows)), 4.5), layout="constrained")
    bits, density = figure.subplots(2, 1, sharex=True)
    bits.bar(names, [row["bits"] for row in rows], color=_ACCURACY)
    bits.set(ylabel="bits per nonzero", title="What each layer was given")
    shares = [100 * row["nonzeros"] / row["weights"] for row in rows]
    bars = density.bar(names, shares, color=_SIZE)
    density.bar_label(bars, [f"{share:.2g}" for share in shares])
    density.set(ylabel="nonzeros, %", yscale="log", ylim=(min(shares, default=1) / 3, 300))
    density.yaxis.set_major_formatter("{x:g}")
    density.yaxis.set_minor_formatter("")
    density.tick_params(axis="x", labelrotation=30)
    figure.savefig(path, dpi=120)


def draw_policy(bits: dict[str, Any], rewards: dict[str, Any], path: Path) -> None:
    """How many channels of each layer have which bits; and the accuracies of the policies that were tried, in order, by each search, NaN
    for trials that are none.
    """
    figure = Figure(figsize=(max(7, 0.5 * len(bits)), 7), layout="constrained")
    layers, trials = figure.subplots(2, 1)
    bottom, names = np.zeros(len(bits)), [path.removesuffix("/kernel") for path in bits]
    for width in range(MAX_BITS + 1):
        share = np.array([100 * np.mean(np.asarray(each) == width) for each in bits.values()])
        color = "lightgrey" if width == 0 else colormaps["viridis"](width / MAX_BITS)
        layers.bar(names, share, bottom=bottom, color=color, label=str(width))
        bottom += share
    layers.set(ylabel="channels, %", title="Bits of the channels of each layer; 0 is pruned")
    layers.tick_params(axis="x", labelrotation=90 if len(bits) > 8 else 30)
    figure.legend(
        *layers.get_legend_handles_labels(), loc="outside upper center", ncols=9, title="bits"
    )
    for method, each in rewards.items():
        each = 100 * np.asarray(each)
        (dots,) = trials.plot(each, ".", alpha=0.5)
        trials.plot(np.fmax.accumulate(each), color=dots.get_color(), label=method)
    trials.set(
        xlabel="trial", ylabel="accuracy, %", title="Policies that were tried, and the best so far"
    )
    trials.legend()
    figure.savefig(path, dpi=120)


def draw_distortion(rows: list[dict[str, Any]], path: Path) -> None:
    """Distortion against ratio, of the joint and of the alternating projections, a panel for each checkpoint."""
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    figure = Figure(figsize=(4 * len(checkpoints), 3.2), layout="constrained")
    panels = figure.subplots(1, len(checkpoints), squeeze=False)[0]
    for axes, checkpoint in zip(panels, checkpoints, strict=True):
        mine = [row for row in rows if row["checkpoint"] == checkpoint]
        ratios = [row["ratio"] for row in mine]
        for label, key in (
            ("alternating", "alternating_distortion"),
            ("joint", "joint_distortion"),
        ):
            axes.plot(ratios, [row[key] for row in mine], marker=".", label=label)
        axes.set(xscale="log", yscale="log", title=checkpoint, xlabel="ratio, paper metric")
    panels[0].set_ylabel("relative squared error")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def draw_frontier(series: dict[str, Sequence[Any]], title: str, path: Path) -> None:
    """Test error against bytes; of each series the points, with name, nbytes and accuracy."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in series.items():
        sizes, errors = ([p.nbytes for p in points], [100 * (1 - p.accuracy) for p in points])
        axes.plot(sizes, errors, "o" if label == "published" else "s", label=label)
        for i, (point, error) in enumerate(zip(points, errors, strict=True)):
            above = (4, -11, 15, 4, 4)[i % 5] if label == "published" else -11  # apart from another
            place = {"xytext": (6, above), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(point.name, (point.nbytes, error), **place)
    axes.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %", title=title)
    axes.set_xlim(1_000, 200_000)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_sizes(checkpoints: dict[str, Any], path: Path) -> None:
    """Writes a PNG: relative error over the share of the arrays' bytes, to where a checkpoint is exact."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, found in checkpoints.items():
        rows = [row for row in found["rows"] if not row["exact"]]
        shares = [100 * row["bytes"] / found["dense"] for row in rows]
        [line] = axes.semilogy(shares, [row["distortion"] for row in rows], label=name)
        axes.axvline(100 * found["lossless"] / found["dense"], color=line.get_color(), ls=":")
    axes.set(xlabel="% of the arrays' bytes (dotted: bit-exact)", ylabel="relative squared error")
    axes.legend()
    figure.savefig(path, dpi=120)
