"""The command line, the train loop, and that a killed run ends in the same bytes."""

import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jpq_jax
from experiments import config as configuration
from experiments import evaluate, model, publish, run, training
from experiments.data import Dataset, Split
from experiments.models.convolution import valid_convolution
from experiments.models.pytorch_weights import load_pytorch

ROOT = Path(__file__).parent.parent
QUICK = ["--train_images=2560", "--dense_epochs=2", "--epochs=3", "--ratio=50"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.run", *arguments]


def environment() -> dict[str, str]:
    """A user's, with one device; only that what is compiled is kept, as for the tests themselves."""
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return kept | {
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
    assert measured["true_ratio"] == pytest.approx(4 * 431_080 / measured["file_bytes"])


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
    """After the first and the last dense epoch, and within compression, at any moment of the epoch that follows."""
    arguments = ("lenet5_mnist", *QUICK, f"--workdir={tmp_path}")
    for epoch in (1, 2, 4):
        kill_after(f"epoch   {epoch}", random.Random(epoch).uniform(0, 0.2), *arguments)
    output = finish(start(*arguments))
    assert "going on after epoch" in output
    reference = finished[0] / "artifact.jpq"
    assert (tmp_path / "artifact.jpq").read_bytes() == reference.read_bytes()


def test_a_run_from_given_weights_is_resumed_too(tmp_path: Path) -> None:
    save_file(torch_layout(np.random.default_rng(0)), tmp_path / "init.safetensors")
    quick = ["--train_images=512", "--epochs=2", f"--init={tmp_path}/init.safetensors"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start("lenet5_mnist", *quick, f"--workdir={whole}"))
    kill_after("epoch   1", 0.1, "lenet5_mnist", *quick, f"--workdir={killed}")
    assert "going on after epoch" in finish(start("lenet5_mnist", *quick, f"--workdir={killed}"))
    assert (killed / "artifact.jpq").read_bytes() == (whole / "artifact.jpq").read_bytes()


def test_a_finished_run_is_only_shown_again(finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    output = finish(start("lenet5_mnist", *QUICK, f"--workdir={workdir}"))
    assert "holds this run, finished" in output
    assert "true ratio against float32" in output
    assert {path: path.stat().st_mtime_ns for path in workdir.iterdir()} == before


def make_record(folder: Path, results: dict, seed: int, accuracy: float, rho: float = 0.05) -> Path:
    settings = results["started"]["settings"] | {"seed": seed, "rho": rho}
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
    with pytest.raises(ValueError, match="different seeds"):
        publish.publish("quick", [runs[0], runs[0]])
    other = make_record(tmp_path / "other", results, 3, 0.99, rho=1.0)
    with pytest.raises(ValueError, match="other: its settings differ"):
        publish.publish("quick", [runs[0], other])


BAD_COMMANDS = {
    "no config": ((), "usage"),
    "unknown config": (("lenet6",), "no config 'lenet6'; there are: lenet5_mnist"),
    "unknown preset": (
        ("lenet5_mnist", "--preset=best"),
        "no preset 'best'; it has: default, paper, published",
    ),
    "unknown key": (("lenet5_mnist", "--epoch_count=3"), "epoch_count"),
    "wrong type": (("lenet5_mnist", "--epochs=many"), "many"),
    "two budgets": (
        ("lenet5_mnist", "--ratio=3", "--density=0.1", "--bits=3"),
        "the budget is either --ratio",
    ),
    "no epochs": (("lenet5_mnist", "--epochs=0"), "at least 1 epoch"),
    "long warm-up": (("lenet5_mnist", "--warmup_epochs=99"), "fewer warmup_epochs"),
    "too dense": (("lenet5_mnist", "--preset=paper", "--density=7"), "density above 0, up to 1"),
    "large batch": (("lenet5_mnist", "--batch_size=100000"), "batches no larger"),
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


def test_diverged_training_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--dense_learning_rate=1e6", "--dense_epochs=3", "--train_images=2560"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert run.main(["lenet5_mnist", *wild, f"--workdir={tmp_path}"]) == 1
    assert "diverged in epoch 1" in capsys.readouterr().err


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


def test_lenet5_has_the_papers_weights() -> None:
    lenet = model.build("lenet5", seed=0)
    plan = jpq_jax.plan_leaves(lenet.params)
    sizes = [leaf.size for leaf in jax.tree.leaves(lenet.params)]
    assert sum(size for size, p in zip(sizes, plan, strict=True) if p.compress) == 430_500
    assert sum(sizes) == 431_080


def test_resnet20_has_the_papers_weights() -> None:
    resnet = model.build("resnet20", seed=0)
    plan = jpq_jax.plan_leaves(resnet.variables)
    leaves = jpq_jax.leaves_with_paths(resnet.variables)
    assert sum(w.size for (_, w), p in zip(leaves, plan, strict=True) if p.compress) == 268_336
    assert {path.rsplit("/")[-1] for path, _ in jpq_jax.leaves_with_paths(resnet.statistics)} == {
        "mean",
        "var",
    }


def torch_resnet_layout(draw: np.random.Generator) -> dict[str, np.ndarray]:
    """PyTorch's names and layouts, as its state dict has them."""
    tensors = {"linear.weight": draw.normal(size=(10, 64)), "linear.bias": draw.normal(size=10)}

    def norm(name: str, width: int) -> None:
        for kind in ("weight", "bias", "running_mean"):
            tensors[f"{name}.{kind}"] = draw.normal(size=width)
        tensors[f"{name}.running_var"] = draw.uniform(0.5, 2, size=width)

    def convolution(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.weight"] = draw.normal(size=(outputs, inputs, 3, 3)) / math.sqrt(
            9 * inputs
        )

    convolution("conv1", 3, 16)
    norm("bn1", 16)
    inputs = 16
    for layer, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            for part, width_in in ((1, inputs), (2, width)):
                convolution(f"layer{layer}.{block}.conv{part}", width_in, width)
                norm(f"layer{layer}.{block}.bn{part}", width)
            inputs = width
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def torch_resnet_forward(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """ResNet-20 with option-A shortcuts in NumPy, float64, in evaluation mode: NCHW."""

    def conv(x: np.ndarray, name: str, stride: int) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        return np.einsum("nihwab,oiab->nohw", windows, tensors[f"{name}.weight"])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var, scale, bias = (
            tensors[f"{name}.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm(conv(x.astype(np.float64), "conv1", 1), "bn1"), 0)
    for layer in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = np.maximum(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"), 0)
            y = norm(conv(y, f"{name}.conv2", 1), f"{name}.bn2")
            side = (y.shape[1] - x.shape[1]) // 2
            x = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (side, side), (0, 0), (0, 0)))
            x = np.maximum(x + y, 0)
    return x.mean(axis=(2, 3)) @ tensors["linear.weight"].T + tensors["linear.bias"]


def test_pytorchs_resnet_gives_pytorchs_outputs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tensors = torch_resnet_layout(draw)
    save_file(tensors, tmp_path / "init.safetensors")
    images = draw.normal(size=(2, 3, 32, 32)).astype(np.float32)
    resnet = model.build("resnet20", seed=0)
    loaded = load_pytorch("resnet20", tmp_path / "init.safetensors", resnet)
    merged = nnx.merge(loaded.graph, loaded.variables)
    merged.eval()
    got = merged(images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got, torch_resnet_forward(tensors, images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("whole_epoch", [True, False])
def test_an_epoch_moves_params_and_statistics(whole_epoch: bool) -> None:
    draw = np.random.default_rng(0)
    resnet = model.build("resnet20", seed=0)
    images = draw.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    split = Split(images, draw.integers(0, 10, 4).astype(np.int32))
    dataset = Dataset(
        name="none",
        train=split,
        validation=split,
        test=split,
        num_classes=10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    settings = dataclasses.replace(
        configuration.presets("resnet20_cifar10")["default"], whole_epoch=whole_epoch, batch_size=2
    )
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    epoch = training.epoch_function(resnet, dataset, settings, optimizer)
    copies = jax.tree.map(jnp.copy, (resnet.params, resnet.statistics))
    trained, loss = epoch(
        training.Trained(*copies, optimizer.init(resnet.params)),
        jnp.asarray(images),
        jnp.asarray(split.labels),
        jax.random.key(0),
    )
    assert math.isfinite(loss)
    for before, after in (
        (resnet.params, trained.params),
        (resnet.statistics, trained.statistics),
    ):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
        assert all(jax.tree.leaves(moved))


def test_the_published_preset_is_the_authors_setting() -> None:
    published = configuration.presets("lenet5_mnist")["published"]
    params = model.build(published.model, seed=0).params
    assert training.budget_of(published, params) == jpq_jax.Budget(bits=6975)
    assert (published.batch_size, published.epochs, published.warmup_epochs) == (256, 120, 10)
    assert (published.learning_rate, published.momentum) == (0.1, 0.93)
    assert (published.rho, published.weight_decay) == (0.05, 5e-4)
    assert published.shift == 0


def test_the_paper_preset_differs_where_it_says() -> None:
    presets = configuration.presets("lenet5_mnist")
    settings, published = (dataclasses.asdict(presets[name]) for name in ("paper", "published"))
    other = {key for key in settings if settings[key] != published[key]}
    assert other == {"shift", "clip", "finetune_epochs"}


def test_learning_rate_rises_then_falls_to_zero() -> None:
    schedule = training._schedule(0.1, 10, 110)
    rates = np.array([schedule(step) for step in range(111)])
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(101) / 100))
    np.testing.assert_allclose(rates[10:], expected, atol=1e-6)


def logits_of(of: model.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(of.seen(of.params, of.statistics, images)[0])


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
    loaded = load_pytorch("lenet5", tmp_path / "init.safetensors", lenet)
    logits = logits_of(loaded, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, torch_forward(tensors, images), rtol=1e-4, atol=1e-4)


def test_relus_of_the_variant_are_there() -> None:
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    plain, relu = model.build("lenet5", seed=0), model.build("lenet5_relu", seed=0)
    gap = logits_of(plain, images) - logits_of(relu._replace(params=plain.params), images)
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
        load_pytorch("lenet5", path, model.build("lenet5", seed=0))


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
    stage = training.stages_of(settings, lenet.params, steps=2)[0]
    assert stage.name == "compress"
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
    with jax.numpy_dtype_promotion("standard"):  # which optax's schedules need
        trained = training.Trained(lenet.params, lenet.statistics, state)
        lowered = epoch.lower(trained, images, split.labels, jax.random.key(0))
    text = lowered.compile().as_text()
    assert not [t for t in re.findall(r'custom_call_target="([^"]*)"', text) if "callback" in t]
    assert " infeed(" not in text
    assert " outfeed(" not in text
    assert optax.tree.get(state, "bit_budget") == 6975
