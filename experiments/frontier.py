"""python -m experiments.frontier: LeNet-5 on MNIST, bytes of the file against accuracy: the records and what was published.

Draws docs/frontier.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

from experiments.plots import draw_frontier
from experiments.publish import RESULTS

FIGURE = Path(__file__).parents[1] / "docs" / "frontier.png"


class Point(NamedTuple):
    """Attributes:
    name: of the method, or the record.
    nbytes: of the file.
    accuracy: on the test images.
    """

    name: str
    nbytes: float
    accuracy: float


# Files as their papers state them: all of them of the model with 20, 50 and 500 units.
PUBLISHED = (
    Point("Deep Compression (Han et al., 2016)", 44_000, 0.992),
    Point("MIRACLE, lowest error (Havasi et al., 2019)", 3_030, 0.9931),
    Point("entropy-penalized (Oktay et al., 2020)", 2_840, 0.99),
    Point("Bayesian Compression (Louizos et al., 2017)", 2_300, 0.99),
    Point("MIRACLE, smallest", 1_520, 0.9904),
)


def records() -> list[Point]:
    """The medians of those trained under a budget in bytes."""
    points = []
    for path in sorted(RESULTS.glob("lenet5_mnist*.json")):
        record = json.loads(path.read_text())
        if record["runs"][0]["started"]["settings"].get("nbytes"):
            median = record["median"]
            points.append(Point(record["name"], median["file_bytes"], median["accuracy"]))
    return points


def main() -> int:
    draw_frontier(
        {"published": PUBLISHED, "this library": records()},
        "LeNet-5 on MNIST, everything in the file",
        FIGURE,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
