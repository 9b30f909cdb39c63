"""The `jpq` command, run as a user runs it, and its verbs as functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jpq_jax
from jpq_jax.cli import main


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    tensors = {
        "fc1.weight": rng.laplace(size=(60, 50)),
        "fc1.bias": rng.normal(size=60),
        "fc2.weight": rng.laplace(size=(10, 60)),
    }
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.newest
def test_there_and_back(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small, dense = tmp_path / "model.jpq", tmp_path / "dense.safetensors"
    assert main(["compress", str(checkpoint), "-o", str(small), "--bytes", "1000"]) == 0
    assert 980 <= small.stat().st_size <= 1000
    assert main(["decompress", str(small), "-o", str(dense)]) == 0
    before, after = load_file(checkpoint), load_file(dense)
    assert before.keys() == after.keys()
    capsys.readouterr()
    assert main(["compare", str(checkpoint), str(small), "--json"]) == 0
    for each in json.loads(capsys.readouterr().out):
        a, b = before[each["path"]], after[each["path"]]
        assert each["relative"] == pytest.approx(float(((a - b) ** 2).sum() / (a**2).sum()))
        assert each["largest"] == pytest.approx(float(np.abs(a - b).max()))
    assert main(["compare", str(dense), str(small)]) == 0


def test_ratio_is_of_the_arrays(checkpoint: Path, tmp_path: Path):
    small = tmp_path / "model.jpq"
    assert main(["compress", str(checkpoint), "-o", str(small), "--ratio", "12"]) == 0
    dense = sum(tensor.nbytes for tensor in load_file(checkpoint).values())
    assert 0.98 * dense / 12 <= small.stat().st_size <= dense / 12


def test_inspect_adds_up(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = tmp_path / "model.jpq"
    main(["compress", str(checkpoint), "-o", str(small), "--bytes", "1500"])
    capsys.readouterr()
    assert main(["inspect", str(small), "--reference", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nbytes"] == small.stat().st_size
    assert found["container"] + sum(leaf["nbytes"] for leaf in found["leaves"]) == found["nbytes"]
    by_path = {leaf["path"]: leaf for leaf in found["leaves"]}
    assert by_path["fc1.weight"]["shape"] == [60, 50]
    assert by_path["fc1.weight"]["stored"] is None
    assert by_path["fc1.bias"]["stored"] == "1 axis"
    assert 0 < by_path["fc2.weight"]["distortion"] < 1
    assert main(["inspect", str(small)]) == 0
    assert "fc1.weight" in capsys.readouterr().out


def test_as_functions(checkpoint: Path, tmp_path: Path):
    params = jpq_jax.read_checkpoint(checkpoint)
    codes = jpq_jax.compress(params, jpq_jax.Budget(nbytes=1000))
    jpq_jax.artifact.save(tmp_path / "x.jpq", codes)
    assert jpq_jax.inspect(tmp_path / "x.jpq").nbytes <= 1000
    found = jpq_jax.compare(checkpoint, tmp_path / "x.jpq")
    assert {each.path for each in found} == set(params)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compress", "IN", "-o", "OUT"], "expected one of --bytes and --ratio"),
        (["compress", "IN", "-o", "OUT", "--bytes", "9", "--ratio", "3"], "expected one of"),
        (["compress", "IN", "-o", "OUT", "--bytes", "9"], "expected at least"),
        (["compress", "IN", "-o", "OUT", "--ratio", "0"], "expected a positive number"),
        (["compress", "none", "-o", "OUT", "--bytes", "9"], "No such file"),
        (["decompress", "IN", "-o", "OUT"], "not a jpq artifact"),
        (["inspect", "IN"], "not a jpq artifact"),
        (["compare", "IN", "none"], "No such file"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    args: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    place = {"IN": str(checkpoint), "OUT": str(tmp_path / "out"), "none": str(tmp_path / "none")}
    assert main([place.get(arg, arg) for arg in args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("jpq: error: ")
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_compare_names_what_differs(checkpoint: Path, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_file(load_file(checkpoint) | {"more": np.ones(1, np.float32)}, other)
    with pytest.raises(ValueError, match="leaf 'more': only the second"):
        jpq_jax.compare(checkpoint, other)
    save_file(load_file(checkpoint) | {"fc1.bias": np.ones(3, np.float32)}, other)
    with pytest.raises(ValueError, match=r"leaf 'fc1\.bias': got shapes \(60,\) and \(3,\)"):
        jpq_jax.compare(checkpoint, other)


def test_the_command_itself_has_help_with_examples():
    command = [str(Path(sys.executable).with_name("jpq")), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "jpq compress model.safetensors -o model.jpq --bytes 100000" in shown
