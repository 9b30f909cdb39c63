"""python -m experiments.run CONFIG [--key=value ...]: trains, compresses, writes the file, measures it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro
from rich.console import Console

from experiments import config as configuration
from experiments import processes, report, training
from experiments.beginning import beginning_of
from experiments.config import Config
from experiments.data import Dataset, Part, load
from experiments.files import write_json
from experiments.model import Model, build, narrow
from experiments.models.pytorch_weights import load_pytorch
from experiments.provenance import provenance
from jpq_jax.plan import plan_leaves
from jpq_jax.vocabulary import InfeasibleError

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


class Experiment(NamedTuple):
    """Attributes:
    name: of the config.
    preset: of its preset.
    config: the settings.
    workdir: where everything of the run is.
    """

    name: str
    preset: str
    config: Config
    workdir: Path


def parse(arguments: list[str]) -> Experiment:
    """What the command line asks for.

    Raises:
      ValueError: no such config or preset, or values that do not go together.
      SystemExit: from tyro, with its message: an unknown key or a value of the wrong type.
    """
    name, rest = arguments[0], arguments[1:]
    presets = configuration.presets(name)
    preset, rest = _take_preset(rest)
    if preset not in presets:
        raise ValueError(f"config {name!r} has no preset {preset!r}; it has: {', '.join(presets)}")
    program = f"python -m experiments.run {name} [--preset={'|'.join(presets)}]"
    config = tyro.cli(Config, prog=program, default=presets[preset], args=rest)
    return Experiment(
        name, preset, config, Path(config.workdir or f"work/{name}-{preset}-{config.seed}")
    )


def _take_preset(arguments: list[str]) -> tuple[str, list[str]]:
    for i, argument in enumerate(arguments):
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset="), arguments[:i] + arguments[i + 1 :]
        if argument == "--preset" and i + 1 < len(arguments):
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return "default", arguments


def claim_workdir(experiment: Experiment) -> dict[str, Any]:
    """Makes the folder and notes there what runs in it, or checks that the run found in it is this one.

    Of several processes the first makes the note.

    Returns:
      The note: the settings, and the command, commit and versions that the run was started with.

    Raises:
      ValueError: if it holds a run with other settings; names them.
    """
    experiment.workdir.mkdir(parents=True, exist_ok=True)
    settings = {"config": experiment.name} | dataclasses.asdict(experiment.config)
    settings = json.loads(json.dumps(settings | {"workdir": None, "distributed": False}))
    path = experiment.workdir / "settings.json"
    if processes.is_first() and not path.exists():
        write_json(path, {"settings": settings, "preset": experiment.preset, **provenance()})
    processes.wait_for_all("note")
    note = json.loads(path.read_text())
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    found = json.loads(json.dumps(defaults)) | note["settings"]  # which may be older than a setting
    other = {k: v for k, v in settings.items() if found.get(k) != v}
    if other:
        raise ValueError(
            f"{experiment.workdir} holds a run with other settings: there "
            f"{ {k: found.get(k) for k in other} }, here {other}; give another --workdir"
        )
    return note


def prepare(experiment: Experiment) -> tuple[Dataset, Model, dict[str, Any]]:
    """The data, the model to start from, and the note in the work directory.

    Raises:
      ValueError, FileNotFoundError: as `load`, `load_pytorch` and `claim_workdir` do.
    """
    config = experiment.config
    if not config.init and not config.dense_epochs:
        raise ValueError(
            "expected a dense model to start from: --init=FILE.safetensors, or --dense_epochs=N; got neither"
        )
    dataset = load(config.dataset, config.data_dir).with_train_images(config.train_images)
    dataset = dataset.with_all_trained_on() if config.all_images else dataset
    if dataset.train.size < config.batch_size:
        raise ValueError(
            f"got batches of {config.batch_size} images, expected at most {dataset.train.size}, which there are"
        )
    if jax.process_count() > 1 and not isinstance(dataset.train, Part):
        raise ValueError(
            f"{config.dataset} is held whole by each process; got {jax.process_count()}, expected 1"
        )
    if config.init:
        model = load_pytorch(config.model, config.init, build(config.model, config.seed))
        model = narrow(config.model, model, config.units) if config.units else model
    else:
        model = build(config.model, config.seed, config.units)
    kernels = [plan.path for plan in plan_leaves(model.params) if plan.compress]
    for name in ("density", "bits"):
        given = getattr(config, name)
        if isinstance(given, tuple) and len(given) != len(kernels):
            raise ValueError(
                f"got {name} {given}, expected one number, or one for each of {', '.join(kernels)}"
            )
    return dataset, model, claim_workdir(experiment)


def run(
    experiment: Experiment, dataset: Dataset, model: Model, note: dict[str, Any], console: Console
) -> None:
    """Trains, compresses and measures; a run found finished is only shown again.

    Raises:
      InfeasibleError: if no model is as small as is asked for.
    """
    config, workdir = experiment.config, experiment.workdir
    results = workdir / "results.json"
    if results.exists():
        console.print(f"{workdir} holds this run, finished:")
        report.show(json.loads(results.read_text()), workdir, console)
        return
    start, bits = beginning_of(config, model, dataset, workdir, console)
    snapshot, history = training.train(
        config, start, dataset, workdir, console, baseline=model, bits=bits
    )
    own = jax.device_get(snapshot)  # so that one process can go on without the others
    if processes.is_first():
        report.finish(note, config, model, dataset, own, history, workdir, console)
    processes.wait_for_all("finished")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 if training diverged, 2 after a mistake in what was asked for, 130 if stopped by the user."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    try:
        experiment = parse(arguments)
        if experiment.config.distributed:
            processes.join()
        prepared = prepare(experiment)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(experiment, *prepared, Console(quiet=not processes.is_first()))
    except InfeasibleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
