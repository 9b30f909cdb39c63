"""Runs from the command line: what they write, that a killed one ends in the same bytes, and what mistakes are told."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chex
import files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import QUICKLY, THOROUGH
from safetensors.numpy import save_file

import jpq_jax
from experiments import evaluate, provenance, publish, run
from experiments.benchmarks import latency
from experiments.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent
QUICK = ["--preset=admm", "--train_images=2560", "--dense_epochs=2", "--epochs=3", "--ratio=50"]
QUICK += ["--units", "8", "16", "64"]
PARAMETERS = 208 + 3_216 + 16_448 + 650  # of such a network


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.run", *arguments]


def environment() -> dict[str, str]:
    """A user's, with one device; only that programs are compiled quickly and kept, as for the tests themselves."""
    return os.environ | {
        "XLA_FLAGS": QUICKLY,
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole small run in a process of its own: its folder, and what it printed."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, finish(start("lenet5_mnist", *QUICK, f"--workdir={workdir}"))


def test_a_run_writes_what_it_says(finished: tuple[Path, str]) -> None:
    workdir, output = finished
    for name in ("artifact.jpq", "results.json", "history.png", "layers.png"):
        assert (workdir / name).stat().st_size > 1000, name
    assert "true ratio against float32" in output
    results = json.loads((workdir / "results.json").read_text())
    assert results["file_bytes"] == (workdir / "artifact.jpq").stat().st_size
    assert results["paper_ratio"] >= 50
    assert results["accuracy"] > 0.8
    assert results["started"]["settings"]["epochs"] == 3
    assert sum(row["bytes"] for row in results["leaves"]) == results["file_bytes"]
    assert [row["stage"] for row in results["epochs"]] == ["dense"] * 2 + ["compress"] * 3
    assert {row["path"] for row in results["leaves"][:-1]} == {
        f"{layer}/{kind}"
        for layer in ("conv1", "conv2", "fc1", "fc2")
        for kind in ("kernel", "bias")
    }


def test_the_chosen_epoch_is_the_best_on_validation(finished: tuple[Path, str]) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    reached = [row["validation_accuracy"] for row in results["epochs"] if "paper_ratio" in row]
    assert results["validation_accuracy"] == max(reached)
    assert results["epoch"] == 2 + max(i for i, r in enumerate(reached, 1) if r == max(reached))


def test_evaluate_prints_one_line_of_json(finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    shown = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", str(workdir / "artifact.jpq")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    measured = json.loads(shown)
    results = json.loads((workdir / "results.json").read_text())
    for key in (
        "dataset",
        "accuracy",
        "baseline_accuracy",
        "file_bytes",
        "true_ratio",
        "paper_ratio",
    ):
        assert measured[key] == results[key], key
    assert measured["true_ratio"] == pytest.approx(4 * PARAMETERS / measured["file_bytes"])


def kill_after(line: str, delay: float, *arguments: str) -> None:
    """Starts a run, and kills it a while after it has printed a line that starts so."""
    process = start(*arguments)
    assert process.stdout is not None
    assert any(printed.startswith(line) for printed in process.stdout), line
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_and_resumed_ends_in_the_same_bytes(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """Within compression, and after the first and the last dense epoch, at any moment of the epoch that follows."""
    arguments = ("lenet5_mnist", *QUICK, f"--workdir={tmp_path}")
    for epoch in (1, 2, 4) if THOROUGH else (4,):
        kill_after(f"epoch   {epoch}", random.Random(epoch).uniform(0, 0.2), *arguments)
    output = finish(start(*arguments))
    assert "going on after epoch" in output
    reference = finished[0] / "artifact.jpq"
    assert (tmp_path / "artifact.jpq").read_bytes() == reference.read_bytes()


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("ye", ["--density=0.1", "--bits", "2", "2", "1", "2", "--epochs=4", "--warmup_epochs=0"]),
        ("pruning", ["--density=0.1", "--epochs=2", "--ramp_epochs=1", "--finetune_epochs=1"]),
    ],
)
def test_pruning_and_clustering_by_themselves(
    method: str, budget: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(files.torch_layout(np.random.default_rng(0)), tmp_path / "init.safetensors")
    narrow = ["--units", "4", "6", "16", f"--init={tmp_path}/init.safetensors"]
    narrow += ["--train_images=512", "--dense_epochs=1", "--dense_learning_rate=1e-4"]
    options = [f"--method={method}", "--ratio=None", *narrow, *budget]
    command = ["lenet5_mnist", "--preset=admm", *options, f"--workdir={tmp_path}/work"]
    with jax.numpy_dtype_promotion("standard"):  # which optax's schedules need
        assert run.main(command) == 0
        # As if killed after the last checkpoint: the dense params are no clusters that the last stage could start from.
        before = (tmp_path / "work" / "artifact.jpq").read_bytes()
        (tmp_path / "work" / "artifact.jpq").unlink()
        (tmp_path / "work" / "results.json").unlink()
        assert run.main(command) == 0
    assert (tmp_path / "work" / "artifact.jpq").read_bytes() == before
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    names = list(dict.fromkeys(row["stage"] for row in results["epochs"]))
    assert names[0] == "dense"
    if method == "ye":
        assert names[1:] == ["prune", "retrain", "cluster", "retrain clusters"]
    kernels = 5 * 5 * 4 + 5 * 5 * 4 * 6 + 96 * 16 + 16 * 10
    assert results["pruning_ratio"] == pytest.approx(kernels / math.ceil(0.1 * kernels))
    least, most = {"ye": (16, 32), "pruning": (1, 1)}[method]
    ratio = results["paper_ratio"] / results["pruning_ratio"]
    if method == "ye":
        assert [row["bits"] for row in results["leaves"] if row.get("compressed")] == [2, 2, 1, 2]
    assert least - 1e-6 <= ratio <= most + 1e-6
    capsys.readouterr()


@pytest.mark.parametrize("method", ["joint", "channelwise"])
def test_a_search_comes_before_training(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(files.torch_layout(np.random.default_rng(0)), tmp_path / "init.safetensors")
    options = [f"--method={method}", "--macs=0.1", "--evaluations=8", "--ratio=20", "--epochs=1"]
    options += [f"--init={tmp_path}/init.safetensors", "--dense_epochs=0", "--warmup_epochs=0"]
    options += ["--train_images=256", "--learning_rate=1e-3", f"--workdir={tmp_path}/work"]
    with jax.numpy_dtype_promotion("standard"):
        assert run.main(["lenet5_mnist", "--preset=admm", *options]) == 0
    assert "macs, by evolution" in capsys.readouterr().out
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    shapes = {row["path"]: row["shape"] for row in results["leaves"] if "shape" in row}
    (*_, first), (*_, into, second) = shapes["conv1/kernel"], shapes["conv2/kernel"]
    assert first == into < 20
    assert shapes["fc1/kernel"][0] == 16 * second < 800
    assert results["pruning_ratio"] > 430_500 / sum(
        math.prod(shape) for path, shape in shapes.items() if path.endswith("kernel")
    )
    again = evaluate.measure(tmp_path / "work" / "artifact.jpq")
    assert again["accuracy"] == results["accuracy"]
    assert again["true_ratio"] == 4 * 431_080 / results["file_bytes"]
    assert (tmp_path / "work" / "channels.png").stat().st_size > 1000
    if method == "channelwise":
        bits = jpq_jax.artifact.load(tmp_path / "work" / "beginning.jpq").extras["bits"]
        kernels = {path: shape for path, shape in shapes.items() if path in bits}
        spent = sum(sum(bits[path]) * math.prod(shape[:-1]) for path, shape in kernels.items())
        assert 0 < spent <= 32 * 430_500 / 20
        return
    parts = latency.measure(tmp_path / "work" / "artifact.jpq", rounds=1)
    assert [row["batch"] for row in parts] == [1, 128]
    assert all(row["small_macs"] <= 0.1 * row["dense_macs"] for row in parts)


def test_too_few_multiplications_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(files.torch_layout(np.random.default_rng(0)), tmp_path / "init.safetensors")
    options = ["--method=joint", "--macs=1e-4", "--ratio=20", f"--init={tmp_path}/init.safetensors"]
    options += ["--dense_epochs=0", "--train_images=256", f"--workdir={tmp_path}/work"]
    with jax.numpy_dtype_promotion("standard"):
        assert run.main(["lenet5_mnist", "--preset=admm", *options]) == 2
    assert "expected at least" in capsys.readouterr().err


def test_checkpoints_have_arrays_without_elements(tmp_path: Path) -> None:
    tree = {"none": jnp.zeros((3, 0)), "some": jnp.arange(4.0), "one": jnp.float32(2)}
    store = Checkpoints(tmp_path)
    store.save(1, tree, [{"epoch": 1}])
    like = jax.tree.map(jnp.zeros_like, tree)
    restored, history = store.restore(store.latest(), like)
    store.close()
    chex.assert_trees_all_equal(restored, tree)
    assert history == [{"epoch": 1}]


def test_a_finished_run_is_only_shown_again(finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    output = finish(start("lenet5_mnist", *QUICK, f"--workdir={workdir}"))
    assert "holds this run, finished" in output
    assert "true ratio against float32" in output
    assert {path: path.stat().st_mtime_ns for path in workdir.iterdir()} == before


def make_record(folder: Path, results: dict, seed: int, accuracy: float, **other: Any) -> Path:
    settings = results["started"]["settings"] | {"seed": seed} | other
    changed = {"accuracy": accuracy, "seed": seed, "started": {"settings": settings}}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results | changed))
    (folder / "artifact.jpq").write_bytes(bytes([seed]))
    return folder


def test_publish_takes_the_median(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publish, "ARTIFACTS", tmp_path / "artifacts")
    runs = [
        make_record(tmp_path / str(seed), results, seed, accuracy)
        for seed, accuracy in enumerate((0.99, 0.97, 0.98))
    ]
    record = publish.publish("quick", runs)
    assert record["median"]["accuracy"] == 0.98
    assert record["artifact_seed"] == 2
    assert (tmp_path / "artifacts" / "quick.jpq").read_bytes() == bytes([2])
    placed = make_record(tmp_path / "placed", results, 4, 0.99, init="/some/where/net.safetensors")
    settings = publish.publish("quick", [placed])["runs"][0]["started"]["settings"]
    assert settings["init"] == "net.safetensors"
    with pytest.raises(ValueError, match="different seeds"):
        publish.publish("quick", [runs[0], runs[0]])
    other = make_record(tmp_path / "other", results, 3, 0.99, rho=1.0)
    with pytest.raises(ValueError, match="other: its settings differ"):
        publish.publish("quick", [runs[0], other])


BAD_COMMANDS = {
    "no config": ((), "usage"),
    "unknown config": (
        ("lenet6",),
        "no config 'lenet6'; there are: alexnet_imagenet, lenet300_mnist, lenet5_mnist, lenet5_mnist_ajpq",
    ),
    "unknown preset": (
        ("lenet5_mnist", "--preset=best"),
        "no preset 'best'; it has: default, paper, published",
    ),
    "unknown key": (("lenet5_mnist", "--epoch_count=3"), "epoch_count"),
    "wrong type": (("lenet5_mnist", "--epochs=many"), "many"),
    "two budgets": (
        ("lenet5_mnist", "--preset=admm", "--ratio=3", "--density=0.1", "--bits=3"),
        "the budget of admm is ratio or bits with density",
    ),
    "no epochs": (("lenet5_mnist", "--epochs=0"), "at least 1 epoch"),
    "long warm-up": (("lenet5_mnist", "--warmup_epochs=99"), "fewer warmup_epochs"),
    "too dense": (("lenet5_mnist", "--preset=paper", "--density=7"), "density above 0, up to 1"),
    "no images": (("lenet5_mnist", "--train_images=0"), "at least 1 training image"),
    "more images than there are": (
        ("lenet5_mnist", "--train_images=100000", "--batch_size=60000"),
        "got batches of 60000 images, expected at most 55000",
    ),
    "large batch": (("lenet5_mnist", "--batch_size=100000"), "batches no larger"),
    "bits for each kernel": (
        ("lenet5_mnist", "--preset=paper", "--bits", "3", "2", "1", "2"),
        "one number of bits, but for clustering and ye",
    ),
    "bits for too few kernels": (
        ("lenet5_mnist", "--preset=ye-joint", "--dense_epochs=1", "--bits", "3", "2"),
        "expected one number, or one for each of conv1/kernel, conv2/kernel, fc1/kernel, fc2/kernel",
    ),
    "densities for each kernel": (
        ("lenet5_mnist", "--preset=paper", "--density", "0.3", "0.2"),
        "one density, but for pruning and ye",
    ),
    "densities for too few kernels": (
        ("lenet5_mnist", "--preset=pruning", "--dense_epochs=1", "--density", "0.3", "0.2"),
        "got density (0.3, 0.2), expected one number, or one for each of conv1/kernel",
    ),
    "too many bits": (("lenet5_mnist", "--preset=ye-joint", "--bits", "3", "9"), "bits of 1 to 8"),
    "admm with a ramp": (
        ("lenet5_mnist", "--preset=admm", "--ramp_epochs=2"),
        "admm without ramp_epochs",
    ),
    "ye with fine-tuning": (
        ("lenet5_mnist", "--preset=ye-joint", "--finetune_epochs=2"),
        "ye without warmup_epochs, finetune_epochs",
    ),
    "backward shift": (("lenet5_mnist", "--shift=-1"), "0 to 8 pixels"),
    "no pull": (("lenet5_mnist", "--rho=0"), "positive rho"),
    "nothing to start from": (("lenet5_mnist", "--preset=paper"), "expected a dense model"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_commands_say_what_is_wrong(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run.main(list(arguments))
    except SystemExit as exit_:  # tyro's
        code = exit_.code
    shown = capsys.readouterr()
    assert code == 2
    words = (shown.out + shown.err).replace("│", " ").split()  # tyro draws a box, and breaks lines
    assert message in " ".join(words)


def test_a_file_that_cannot_be_is_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["lenet5_mnist", "--preset=bytes", "--nbytes=20", f"--workdir={tmp_path}"]) == 2
    assert "got a budget of 20 bytes, expected at least" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_diverged_training_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--dense_learning_rate=1e6", "--dense_epochs=3", "--train_images=2560"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert run.main(["lenet5_mnist", *wild, f"--workdir={tmp_path}"]) == 1
    assert "diverged in epoch 1" in capsys.readouterr().err


def test_on_all_images_the_last_epoch_counts(tmp_path: Path) -> None:
    quick = ["--train_images=1280", "--dense_epochs=1", "--epochs=4", "--ramp_epochs=1"]
    rest = ["--finetune_epochs=0", "--all_images", f"--workdir={tmp_path}"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert run.main(["lenet300_mnist", "--preset=pruning", *quick, *rest]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["epoch"] == 5
    assert results["epoch_chosen_by"].startswith("the last")
    dataset, _, _ = run.prepare(
        run.parse(["lenet300_mnist", "--all_images", f"--workdir={tmp_path / 'other'}"])
    )
    assert dataset.train.size == 60_000
    np.testing.assert_array_equal(dataset.train.labels[-5_000:], dataset.validation.labels)


def test_help_lists_configs_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--help"]) == 0
    assert "lenet5_mnist" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        run.main(["lenet5_mnist", "--help"])
    assert exit_.value.code == 0
    assert "weight-decay" in capsys.readouterr().out.replace("_", "-")


def test_a_workdir_of_another_run_is_refused(tmp_path: Path) -> None:
    experiment = run.parse(["lenet5_mnist", f"--workdir={tmp_path}"])
    note = run.claim_workdir(experiment)
    assert run.claim_workdir(experiment) == note
    del note["settings"]["all_images"]  # as of a run from before there was this setting
    (tmp_path / "settings.json").write_text(json.dumps(note))
    assert run.claim_workdir(experiment) == note
    other = run.parse(["lenet5_mnist", f"--workdir={tmp_path}", "--rho=0.1"])
    with pytest.raises(ValueError, match="other settings.*rho"):
        run.claim_workdir(other)


def test_a_mistake_does_not_claim_the_workdir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    for mistake in ("--init=none.safetensors", "--dense_epochs=0"):
        assert run.main(["lenet5_mnist", mistake, f"--workdir={workdir}"]) == 2
        assert "error: " in capsys.readouterr().err
    assert not workdir.exists()


def test_evaluate_refuses_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other.jpq"
    jpq_jax.artifact.save(path, {"w": np.ones(3, np.float32)}, {})
    with pytest.raises(ValueError, match="other.jpq.*lack"):
        evaluate.measure(path)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--data_dir=/some/where/cifar", "--data_dir=cifar"),
        ("/some/where/cifar", "cifar"),
        ("../shared/checkpoints", "../shared/checkpoints"),
        ("--ratio=20", "--ratio=20"),
        ("lenet5_mnist", "lenet5_mnist"),
    ],
)
def test_commands_are_told_without_this_machines_folders(argument: str, told: str) -> None:
    assert provenance._anywhere(argument) == told
