"""The command line, the train loop, and that a killed run ends in the same bytes."""

import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import jpq_jax
from experiments import config as configuration
from experiments import evaluate, model, publish, run, training
from experiments.data import Dataset, Split
from experiments.models.convolution import valid_convolution
from experiments.models.pytorch_weights import load_lenet5

ROOT = Path(__file__).parent.parent
QUICK = ["--train_images=2560", "--dense_epochs=2", "--epochs=3", "--ratio=50"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.run", *arguments]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """A whole small run in a process of its own: its folder, what it printed, and how long it took."""
    workdir = tmp_path_factory.mktemp("run")
    started = time.monotonic()
    output = finish(start("lenet5_mnist", *QUICK, f"--workdir={workdir}"))
    return workdir, output, time.monotonic() - started


def test_a_run_writes_what_it_says(finished: tuple[Path, str, float]) -> None:
    workdir, output, _ = finished
    for name in ("artifact.jpq", "results.json", "history.png", "layers.png"):
        assert (workdir / name).stat().st_size > 1000, name
    assert "true ratio against float32" in output
    results = json.loads((workdir / "results.json").read_text())
    assert results["file_bytes"] == (workdir / "artifact.jpq").stat().st_size
    assert results["paper_ratio"] >= 50
    assert results["accuracy"] > 0.8
    assert results["settings"]["epochs"] == 3
    assert [row["stage"] for row in results["epochs"]] == ["dense"] * 2 + ["compress"] * 3
    assert {row["path"] for row in results["leaves"]} == {
        f"{layer}/{kind}"
        for layer in ("conv1", "conv2", "fc1", "fc2")
        for kind in ("kernel", "bias")
    }


def test_the_chosen_epoch_is_the_best_on_validation(finished: tuple[Path, str, float]) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    reached = [row["validation_accuracy"] for row in results["epochs"] if "paper_ratio" in row]
    assert results["validation_accuracy"] == pytest.approx(max(reached), abs=1e-6)


def test_evaluate_prints_one_line_of_json(finished: tuple[Path, str, float]) -> None:
    workdir, _, _ = finished
    shown = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", str(workdir / "artifact.jpq")],
        cwd=ROOT,
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
    assert measured["true_ratio"] == pytest.approx(4 * 431_080 / measured["file_bytes"])


@pytest.mark.parametrize("moment", range(3))
def test_killed_and_resumed_ends_in_the_same_bytes(
    finished: tuple[Path, str, float], moment: int, tmp_path: Path
) -> None:
    reference, _, duration = finished
    arguments = ("lenet5_mnist", *QUICK, f"--workdir={tmp_path}")
    process = start(*arguments)
    # A third of the run each, so that start, middle and end are all hit.
    time.sleep(duration * random.Random(moment).uniform(moment / 3, (moment + 1) / 3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(start(*arguments))
    assert (tmp_path / "artifact.jpq").read_bytes() == (reference / "artifact.jpq").read_bytes()


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, str, float]) -> None:
    workdir, _, _ = finished
    before = (workdir / "artifact.jpq").read_bytes()
    output = finish(start("lenet5_mnist", *QUICK, f"--workdir={workdir}"))
    assert "going on after epoch 5" in output
    assert "epoch   1" not in output
    assert (workdir / "artifact.jpq").read_bytes() == before


def test_publish_takes_the_median(
    finished: tuple[Path, str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdirs = []
    for seed, accuracy in enumerate((0.99, 0.97, 0.98)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        results = json.loads((finished[0] / "results.json").read_text())
        changed = {
            "accuracy": accuracy,
            "seed": seed,
            "settings": results["settings"] | {"seed": seed},
        }
        (folder / "results.json").write_text(json.dumps(results | changed))
        (folder / "artifact.jpq").write_bytes(bytes([seed]))
        workdirs.append(folder)
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publish, "ARTIFACTS", tmp_path / "artifacts")
    record = publish.publish("quick", workdirs)
    assert record["median"]["accuracy"] == 0.98
    assert record["artifact_seed"] == 2
    assert (tmp_path / "artifacts" / "quick.jpq").read_bytes() == bytes([2])
    other = json.loads((workdirs[0] / "results.json").read_text())
    other["settings"]["rho"] = 1.0
    (workdirs[0] / "results.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="settings differ"):
        publish.publish("quick", workdirs)


BAD_COMMANDS = {
    "no config": ((), "usage"),
    "unknown config": (("lenet6",), "no config 'lenet6'; there are: lenet5_mnist"),
    "unknown preset": (
        ("lenet5_mnist", "--preset=best"),
        "no preset 'best'; it has: default, paper",
    ),
    "unknown key": (("lenet5_mnist", "--epoch_count=3"), "epoch_count"),
    "wrong type": (("lenet5_mnist", "--epochs=many"), "many"),
    "two budgets": (
        ("lenet5_mnist", "--ratio=3", "--density=0.1", "--bits=3"),
        "either --ratio or",
    ),
    "no epochs": (("lenet5_mnist", "--epochs=0"), "epochs >= 1"),
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
    assert message in shown.out + shown.err


def test_help_lists_configs_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--help"]) == 0
    assert "lenet5_mnist" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        run.main(["lenet5_mnist", "--help"])
    assert exit_.value.code == 0
    assert "weight-decay" in capsys.readouterr().out.replace("_", "-")


def test_a_workdir_of_another_run_is_refused(tmp_path: Path) -> None:
    _, settings = run.parse(["lenet5_mnist", f"--workdir={tmp_path}"])
    run.claim_workdir("lenet5_mnist", settings)
    run.claim_workdir("lenet5_mnist", settings)
    _, other = run.parse(["lenet5_mnist", f"--workdir={tmp_path}", "--rho=0.1"])
    with pytest.raises(ValueError, match="other settings.*rho"):
        run.claim_workdir("lenet5_mnist", other)


def test_evaluate_refuses_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other.jpq"
    jpq_jax.artifact.save(path, {"w": np.ones(3, np.float32)}, {})
    with pytest.raises(ValueError, match="other.jpq.*lack"):
        evaluate.measure(path)


def test_lenet5_has_the_papers_weights() -> None:
    lenet = model.build("lenet5", seed=0)
    plan = jpq_jax.plan_leaves(lenet.params)
    sizes = [leaf.size for leaf in jax.tree.leaves(lenet.params)]
    assert sum(size for size, p in zip(sizes, plan, strict=True) if p.compress) == 430_500
    assert sum(sizes) == 431_080


def test_the_paper_preset_is_the_published_setting() -> None:
    paper = configuration.presets("lenet5_mnist")["paper"]
    params = model.build(paper.model, seed=0).params
    assert training.budget_of(paper, params) == jpq_jax.Budget(bits=6975)
    assert (paper.batch_size, paper.epochs, paper.rho) == (256, 120, 0.05)
    assert (paper.weight_decay, paper.momentum) == (5e-4, 0.93)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    schedule = training._schedule(0.1, 10, 110)
    rates = np.array([schedule(step) for step in range(111)])
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(101) / 100))
    np.testing.assert_allclose(rates[10:], expected, atol=1e-6)


def torch_layout(draw: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {
        "features.0": (20, 1, 5, 5),
        "features.2": (50, 20, 5, 5),
        "classifier.0": (500, 800),
        "classifier.2": (10, 500),
    }
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = draw.normal(size=shape).astype(np.float32) / math.sqrt(
            math.prod(shape[1:])
        )
        tensors[f"{name}.bias"] = draw.normal(size=shape[0]).astype(np.float32)
    return tensors


def torch_forward(tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """PyTorch's LeNet-5 in NumPy, float64: NCHW, channel-first flattening."""

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
        return np.einsum("nihwab,oiab->nohw", windows, kernel) + bias[:, None, None]

    def pool(x: np.ndarray) -> np.ndarray:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))

    x = images.astype(np.float64)
    for name in ("features.0", "features.2"):
        x = pool(conv(x, name))
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ tensors["classifier.0.weight"].T + tensors["classifier.0.bias"], 0)
    return x @ tensors["classifier.2.weight"].T + tensors["classifier.2.bias"]


def test_pytorch_weights_give_pytorchs_outputs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tensors = torch_layout(draw)
    save_file(tensors, tmp_path / "init.safetensors")
    images = draw.normal(size=(3, 1, 28, 28)).astype(np.float32)
    lenet = model.build("lenet5", seed=0)
    params = load_lenet5(tmp_path / "init.safetensors", lenet.params)
    logits = lenet.logits(params, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, torch_forward(tensors, images), rtol=1e-4, atol=1e-4)


def test_relus_of_the_variant_are_there() -> None:
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    plain, relu = model.build("lenet5", seed=0), model.build("lenet5_relu", seed=0)
    gap = plain.logits(plain.params, images) - relu.logits(plain.params, images)
    assert float(abs(gap).max()) > 1e-3


@pytest.mark.parametrize("broken", ["missing", "shape", "file"])
def test_bad_pytorch_weights_are_named(broken: str, tmp_path: Path) -> None:
    tensors = torch_layout(np.random.default_rng(0))
    path = tmp_path / "init.safetensors"
    if broken == "missing":
        del tensors["classifier.2.bias"]
    if broken == "shape":
        tensors["features.0.weight"] = tensors["features.0.weight"][:19].copy()
    save_file(tensors, path)
    if broken == "file":
        path.write_bytes(path.read_bytes()[:-100])
    expected = {"missing": "classifier.2.bias", "shape": "conv1/kernel", "file": "init.safetensors"}
    with pytest.raises(ValueError, match=expected[broken]):
        load_lenet5(path, model.build("lenet5", seed=0).params)


def test_patches_are_the_usual_convolution() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 9, 8, 3)).astype(np.float32)
    kernel = draw.normal(size=(5, 4, 3, 7)).astype(np.float32)
    layout = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
    got = valid_convolution(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_epoch_is_one_program_without_callbacks() -> None:
    settings = configuration.presets("lenet5_mnist")["paper"]
    lenet = model.build("lenet5", seed=0)
    stage = training.stages_of(settings, lenet.params, steps=2)[-1]
    images = np.zeros((512, 28, 28, 1), np.uint8)
    dataset = Dataset(
        name="none",
        train=(split := Split(images, np.zeros(512, np.int32))),
        validation=split,
        test=split,
        num_classes=10,
        mean=(0.0,),
        std=(1.0,),
    )
    epoch = training.epoch_function(lenet, dataset, settings, stage.optimizer)
    state = stage.optimizer.init(lenet.params)
    compiled = epoch.lower(lenet.params, state, images, split.labels, jax.random.key(0)).compile()
    text = compiled.as_text()
    assert not [t for t in re.findall(r'custom_call_target="([^"]*)"', text) if "callback" in t]
    assert " infeed(" not in text
    assert " outfeed(" not in text
    assert optax.tree.get(state, "bit_budget") == 6975
