"""python -m experiments.render: writes the tables of README.md from experiments/results/*.json."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from experiments.frontier import PUBLISHED, records
from experiments.publish import RESULTS

README = Path(__file__).parent.parent / "README.md"
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(readme: str) -> str:
    """README's text with each table between its marks made anew.

    Raises:
      ValueError: a mark that names no table.
    """

    def table(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name not in _TABLES:
            raise ValueError(
                f"README has a place for table {name!r}; there are: {', '.join(_TABLES)}"
            )
        return opening + _TABLES[name]() + closing

    return _PLACE.sub(table, readme)


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _records() -> str:
    """Every record: the median of its seeds, and their range."""
    columns = [
        "record",
        "seeds",
        "dense",
        "compressed",
        "paper metric",
        "pruning",
        "file",
        "true ratio",
    ]
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        record = _load(path.stem)
        if "median" not in record:
            continue
        median, reached = record["median"], [run["accuracy"] for run in record["runs"]]
        spread = (
            f" ({_percent(min(reached))} to {_percent(max(reached))})" if len(reached) > 1 else ""
        )
        rows.append(
            [
                f"`{record['name']}`",
                str(len(reached)),
                _percent(median["baseline_accuracy"]),
                _percent(median["accuracy"]) + spread,
                f"{median['paper_ratio']:,.0f}x",
                f"{median['pruning_ratio']:,.0f}x",
                f"{median['file_bytes']:,.0f} B",
                f"{median['true_ratio']:,.0f}x",
            ]
        )
    return _markdown(columns, rows)


def _projections() -> str:
    """The published projections against the authors' own."""
    columns = ["model", "density, bits", "budget, bits", "authors' code", "this library", "time"]
    rows = [
        [
            row["checkpoint"],
            f"{row['density']}, {row['bits']}",
            f"{row['budget_bits']:,}",
            f"{row['published_distortion']:.5f}",
            f"{row['distortion']:.5f}",
            f"{row['seconds']:.2f} s",
        ]
        for row in _load("published_projections")["rows"]
    ]
    return _markdown(columns, rows)


def _distortion() -> str:
    """The joint projection against the authors' alternation."""
    columns = ["model", "budget, bits", "authors' code", "`project`", "ratio"]
    found = _load("distortion")
    rows = [
        [
            row["checkpoint"],
            f"{row['budget_bits']:,}",
            f"{row['published_distortion']:.5f}",
            f"{row['joint_distortion']:.5f}",
            f"{row['joint_to_published']:.2f}",
        ]
        for row in found["rows"]
    ]
    return _markdown(
        columns, [*rows, ["geometric mean", "", "", "", f"{found['geometric_mean']:.2f}"]]
    )


def _cost() -> str:
    """What projections cost: seconds, and as multiples of an Adam step of the same weights."""
    columns = ["weights of", "number", "Adam step", "`project`", "alternating, one round", "NumPy"]
    found = _load("projection")

    def cost(row: dict[str, Any], name: str) -> str:
        if f"{name}_seconds" not in row:
            return ""
        return f"{_milliseconds(row[f'{name}_seconds'])} ({row[f'{name}_to_adam']:.2f})"

    rows = [
        [
            row["case"],
            f"{row['weights'] / 1e6:.2f} M",
            _milliseconds(row["adam_seconds"]),
            *(cost(row, name) for name in ("joint", "published", "numpy")),
        ]
        for row in found["rows"] + found["scaling"]
    ]
    return _markdown(columns, rows)


def _overhead() -> str:
    """What `latent` adds to a training step."""
    columns = ["model", "plain step", "through the projection", "more"]
    rows = [
        [
            row["model"],
            f"{row['plain_ms']:.1f} ms",
            f"{row['constrained_ms']:.1f} ms",
            f"{100 * row['overhead']:.1f} %",
        ]
        for row in _load("step_overhead")["rows"]
    ]
    return _markdown(columns, rows)


def _full_size() -> str:
    """Constrained steps of the large models."""
    columns = ["model", "batch", "method", "step", "to plain", "memory, by the params'", "file"]
    rows = []
    for row in _load("full_size")["rows"]:
        plain = f"{row['plain_seconds']:.2f} s", "", f"{row['plain_memory']:.1f}", ""
        rows.append([row["model"], str(row["batch"]), "SGD alone", *plain])
        for name in ("joint", "admm", "pruning"):
            own = row[name]
            figures = f"{own['seconds']:.2f} s", f"{own['to_plain']:.2f}", f"{own['memory']:.1f}"
            rows.append(["", "", f"`{name}`", *figures, f"{own['file_bytes']:,} B"])
    return _markdown(columns, rows)


def _file_size() -> str:
    """Post-training compression against NNCodec at its sizes."""
    columns = [
        "model",
        "NNCodec's bytes",
        "its error",
        "ours",
        "its accuracy",
        "ours",
        "bytes at its error",
    ]
    found = _load("file_size")
    rows = [
        [
            row["checkpoint"],
            f"{row['nncodec_bytes']:,}",
            f"{row['nncodec_distortion']:.5f}",
            f"{row['distortion']:.5f}",
            _percent(row["nncodec_accuracy"]),
            _percent(row["accuracy"]),
            f"{row['bytes_at_equal_distortion']:,.0f} ({row['bytes_ratio']:.2f})",
        ]
        for row in found["rows"]
    ]
    mean = ["geometric mean", "", "", "", "", "", f"{found['geometric_mean']:.2f}"]
    return _markdown(columns, [*rows, mean])


def _frontier() -> str:
    """LeNet-5, bytes against accuracy."""
    points = sorted([*PUBLISHED, *records()], key=lambda point: -point.nbytes)
    ours = {point.name for point in records()}
    rows = [
        [
            f"`{point.name}`" if point.name in ours else point.name,
            f"{point.nbytes:,.0f}",
            _percent(point.accuracy),
        ]
        for point in points
    ]
    return _markdown(["LeNet-5 on MNIST", "bytes", "accuracy"], rows)


def _ablations() -> str:
    """Each extra of Ye et al., with it and without."""
    columns = ["extra", "with", "without", "median gain, points"]
    rows = [
        [
            row["extra"],
            *(_percent(statistics.median(row[side])) for side in ("with", "without")),
            f"{100 * row['median_gain']:+.2f}",
        ]
        for row in _load("ablations")["rows"]
    ]
    return _markdown(columns, rows)


def _latency() -> str:
    """Models with fewer channels against the dense ones."""
    columns = ["file", "images", "dense", "smaller", "faster", "multiplications"]
    rows = [
        [
            f"`{row['artifact']}`",
            str(row["batch"]),
            *(f"{1e3 * row[key]:.2f} ms" for key in ("dense_seconds", "small_seconds")),
            f"{row['faster']:.2f}x",
            f"{row['dense_macs'] / row['small_macs']:.2f}x fewer",
        ]
        for row in _load("latency")["rows"]
    ]
    return _markdown(columns, rows)


def _policy_search() -> str:
    """Searches for the bits of channels in equal numbers of trials."""
    found = _load("policy_search")
    rows = [
        [f"`{row['method']}`", *(_percent(row[key]) for key in ("median", "least", "most"))]
        for row in sorted(found["summary"], key=lambda row: -row["median"])
    ]
    return _markdown([f"`method=`, at {found['ratio']:g}x", "median", "least", "most"], rows)


_TABLES = {
    "ablations": _ablations,
    "frontier": _frontier,
    "file_size": _file_size,
    "full_size": _full_size,
    "latency": _latency,
    "policy_search": _policy_search,
    "records": _records,
    "projections": _projections,
    "distortion": _distortion,
    "cost": _cost,
    "overhead": _overhead,
}


def main() -> int:
    README.write_text(rendered(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
