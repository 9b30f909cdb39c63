"""python -m experiments.publish NAME WORKDIR ...: puts finished runs, one per seed, on record.

Writes experiments/results/NAME.json, with all runs and their median, and the artifact of the run with the median
accuracy as experiments/artifacts/NAME.jpq.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments.files import write_json
from jpq_jax.artifact.file import write_whole

_HERE = Path(__file__).parent
RESULTS, ARTIFACTS = _HERE / "results", _HERE / "artifacts"
_FIGURES = (
    "accuracy",
    "baseline_accuracy",
    "file_bytes",
    "true_ratio",
    "paper_ratio",
    "pruning_ratio",
)


def publish(name: str, workdirs: list[Path]) -> dict[str, Any]:
    """Raises ValueError if a run is not finished, or the runs differ in more, or less, than the seed."""
    runs = [_finished(workdir) for workdir in workdirs]
    for workdir, run in zip(workdirs, runs, strict=True):
        if _but_for_seed(run) != _but_for_seed(runs[0]):
            raise ValueError(f"{workdir}: its settings differ from those of {workdirs[0]}")
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"expected runs of different seeds; got {seeds}")
    middle = statistics.median_low(run["accuracy"] for run in runs)
    chosen = next(i for i, run in enumerate(runs) if run["accuracy"] == middle)
    record = {
        "name": name,
        "artifact": f"{name}.jpq",
        "artifact_seed": seeds[chosen],
        "median": {key: statistics.median(run[key] for run in runs) for key in _FIGURES},
        "runs": [_anywhere(run) for run in runs],
    }
    for folder in (RESULTS, ARTIFACTS):
        folder.mkdir(exist_ok=True)
    artifact = (workdirs[chosen] / "artifact.jpq").read_bytes()
    write_whole(ARTIFACTS / f"{name}.jpq", artifact)
    write_json(RESULTS / f"{name}.json", record)
    return record


def _anywhere(run: dict[str, Any]) -> dict[str, Any]:
    """Without where the data set and the checkpoint were on the machine that it ran on."""
    settings = run["started"]["settings"] | {"data_dir": None}
    if settings["init"]:
        settings["init"] = Path(settings["init"]).name
    return run | {"started": run["started"] | {"settings": settings}}


def _but_for_seed(run: dict[str, Any]) -> dict[str, Any]:
    return run["started"]["settings"] | {"seed": None}


def _finished(workdir: Path) -> dict[str, Any]:
    path = workdir / "results.json"
    if not path.exists():
        raise ValueError(f"{workdir}: has no results.json; the run is not finished")
    return json.loads(path.read_text())


def main(name: tyro.conf.Positional[str], workdirs: tyro.conf.Positional[list[Path]]) -> int:
    """Puts finished runs, one per seed, on record.

    Args:
      name: of the record: CONFIG or CONFIG-VARIANT.
      workdirs: the runs' work directories.
    """
    try:
        print(json.dumps(publish(name, workdirs)["median"]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.publish"))
