"""python -m experiments.run CONFIG [--key=value ...]: trains, compresses, writes the file, measures it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments import config as configuration
from experiments.config import Config
from experiments.files import write_json

_USAGE = """usage: python -m experiments.run CONFIG [--preset=NAME] [--key=value ...]

Trains a model, compresses it to a budget, writes the file, and measures the file after reading it back.

configs (preset "default" unless another is named):
{configs}

python -m experiments.run CONFIG --help lists the keys.
"""


def usage() -> str:
    lines = [
        f"  {name:16s} presets: {', '.join(configuration.presets(name))}"
        for name in configuration.names()
    ]
    return _USAGE.format(configs="\n".join(lines))


def parse(arguments: list[str]) -> tuple[str, Config]:
    """The run's name (CONFIG-PRESET-SEED, the default folder) and its config.

    Raises:
      ValueError: no such config or preset, or values that do not go together.
      SystemExit: from tyro, with its message: an unknown key or a value of the wrong type.
    """
    name, rest = arguments[0], arguments[1:]
    presets = configuration.presets(name)
    chosen, rest = _take_preset(rest)
    if chosen not in presets:
        raise ValueError(f"config {name!r} has no preset {chosen!r}; it has: {', '.join(presets)}")
    program = f"python -m experiments.run {name} [--preset={'|'.join(presets)}]"
    config = tyro.cli(Config, prog=program, default=presets[chosen], args=rest)
    return name, dataclasses.replace(
        config, workdir=config.workdir or f"work/{name}-{chosen}-{config.seed}"
    )


def _take_preset(arguments: list[str]) -> tuple[str, list[str]]:
    for i, argument in enumerate(arguments):
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset="), arguments[:i] + arguments[i + 1 :]
        if argument == "--preset" and i + 1 < len(arguments):
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return "default", arguments


def claim_workdir(name: str, config: Config) -> Path:
    """Makes the folder, or checks that the run found in it is this one.

    Raises:
      ValueError: if it holds a run with other settings; names them.
    """
    workdir = Path(config.workdir or name)
    workdir.mkdir(parents=True, exist_ok=True)
    settings = {"config": name} | dataclasses.asdict(config) | {"workdir": None}
    note = workdir / "settings.json"
    if note.exists():
        found = json.loads(note.read_text())
        other = {k: v for k, v in settings.items() if found.get(k) != v}
        if other:
            raise ValueError(
                f"{workdir} holds a run with other settings: there "
                f"{ {k: found.get(k) for k in other} }, here {other}; give another --workdir"
            )
    else:
        write_json(note, settings)
    return workdir


def run(name: str, config: Config, console: Console) -> dict[str, Any]:
    """The whole experiment; returns the results that it also writes to the work directory."""
    # Here, so that --help and mistakes in the arguments are answered at once.
    from experiments import data, report, training
    from experiments.model import build
    from experiments.models.pytorch_weights import load_lenet5

    workdir = claim_workdir(name, config)
    dataset = data.load(config.dataset, config.data_dir).with_train_images(config.train_images)
    model = build(config.model, config.seed)
    if config.init:
        model = model._replace(params=load_lenet5(config.init, model.params))
    snapshot, history = training.train(config, model, dataset, workdir, console)
    return report.finish(name, config, model, dataset, snapshot, history, workdir, console)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    try:
        name, config = parse(arguments)
        run(name, config, Console())
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
