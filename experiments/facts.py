"""What an artifact's model is, and which data set it was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.publish import ARTIFACTS, RESULTS

FACTS = ("dataset", "model", "config", "baseline_accuracy")

Facts = dict[str, Any]


def facts_of(path: Path, said: Facts) -> Facts:
    """Find out what a file does not say itself.

    A file under a budget in bytes holds the model and nothing else, since all of it counts.
    What it was made of is in the `results.json` that its run wrote beside it, or in the record
    of an artifact of the same bytes in `experiments/results`, whatever the file is called.

    Args:
      path: the file.
      said: its extras, and what is known besides. Taken alone if it has all of `FACTS`.

    Returns:
      dataset, model, config and baseline_accuracy; units of a narrower model; macs, the share of
      multiplications that was asked for or None, if channels were taken out of it.

    Raises:
      ValueError: if they are in none of these places.
    """
    places: tuple[Callable[[Path], Facts], ...] = (lambda _: said, _of_run, _of_record)
    for place in places:
        facts = place(path)
        if set(facts) >= set(FACTS):
            return facts
    raise ValueError(
        f"{path}: its extras lack {[fact for fact in FACTS if fact not in said]}, and neither a "
        "results.json of its run beside it nor a record in experiments/results says them"
    )


def _of_run(path: Path) -> Facts:
    """What the run says that wrote the file, and no other since."""
    results = path.resolve().with_name("results.json")
    if path.resolve().name != "artifact.jpq" or not results.exists():
        return {}
    facts = json.loads(results.read_text())
    return facts if facts.get("file_bytes") == path.stat().st_size else {}


def _of_record(path: Path) -> Facts:
    """What the record of the same file says."""
    data = path.read_bytes()
    for recorded in ARTIFACTS.glob("*.jpq"):
        if recorded.stat().st_size == len(data) and recorded.read_bytes() == data:
            record = json.loads((RESULTS / f"{recorded.stem}.json").read_text())
            return next(run for run in record["runs"] if run["seed"] == record["artifact_seed"])
    return {}
