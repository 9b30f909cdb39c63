"""The verbs of the `jpq` command, called as functions; tests/test_cli_process.py runs it as a user does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import compress_at_once, run, write_checkpoint, write_small
from safetensors.numpy import load_file, save_file

import jpq_jax
from jpq_jax import post_training

NAMES = ("blocks[attn].weight", "[/bold].bias", "a[link=x].weight", "[1, 2]/b")  # rich's markup


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


@pytest.fixture
def small(checkpoint: Path) -> Path:
    return write_small(checkpoint)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return compress_at_once(monkeypatch)


@pytest.mark.newest
def test_there_and_back(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small, dense = tmp_path / "model.jpq", tmp_path / "dense.safetensors"
    assert run("compress", checkpoint, "-o", small, "--bytes", 1000) == 0
    assert 980 <= small.stat().st_size <= 1000
    said = capsys.readouterr().out
    assert run("decompress", small, "-o", dense) == 0
    before, after = load_file(checkpoint), load_file(dense)
    assert before.keys() == after.keys()
    capsys.readouterr()
    assert run("compare", checkpoint, small, "--json") == 0
    lost = whole = 0.0
    for each in json.loads(capsys.readouterr().out):
        a, b = before[each["path"]], after[each["path"]]
        assert each["relative"] == pytest.approx(float(((a - b) ** 2).sum() / (a**2).sum()))
        assert each["largest"] == pytest.approx(float(np.abs(a - b).max()))
        lost, whole = lost + float(((a - b) ** 2).sum()), whole + float((a**2).sum())
    ratio, size = 14640 / small.stat().st_size, small.stat().st_size
    assert said == (
        f"{small}: {size:,} of 1,000 bytes, {ratio:.1f}x smaller, "
        f"relative squared error {lost / whole:.3g}\n"
    )
    assert run("compare", dense, small) == 0
    assert "total: relative squared error 0, largest difference 0;" in capsys.readouterr().out


def test_ratio_is_of_the_arrays(checkpoint: Path, tmp_path: Path):
    small = tmp_path / "model.jpq"
    assert run("compress", checkpoint, "-o", small, "--ratio", "12x") == 0
    dense = sum(tensor.nbytes for tensor in load_file(checkpoint).values())
    assert 0.98 * dense / 12 <= small.stat().st_size <= dense / 12


def test_inspect_adds_up(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = tmp_path / "model.jpq"
    run("compress", checkpoint, "-o", small, "--bytes", 1500)
    capsys.readouterr()
    assert run("inspect", small, "--reference", checkpoint, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nbytes"] == small.stat().st_size
    assert found["container"] + sum(leaf["nbytes"] for leaf in found["leaves"]) == found["nbytes"]
    by_path = {leaf["path"]: leaf for leaf in found["leaves"]}
    assert by_path["fc1.weight"]["shape"] == [60, 50]
    assert by_path["fc1.weight"]["stored"] is None
    assert by_path["fc1.bias"]["stored"] == "1 axis"
    assert 0 < by_path["fc2.weight"]["distortion"] < 1
    squares = {name: float((tensor**2).sum()) for name, tensor in load_file(checkpoint).items()}
    lost = sum(leaf["distortion"] * squares[path] for path, leaf in by_path.items())
    assert found["distortion"] == pytest.approx(lost / sum(squares.values()), rel=1e-5)
    assert run("inspect", small) == 0
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
        (["compress", "IN", "-o", "OUT", "--bytes", "9", "--lossless"], "expected one of"),
        (["compress", "IN", "-o", "OUT", "--bytes", "9"], "expected at least"),
        (["compress", "IN", "-o", "OUT", "--ratio", "1e99"], "expected at least"),
        (["compress", "IN", "-o", "OUT", "--ratio", "0"], "expected a positive number"),
        (["compress", "none", "-o", "OUT", "--bytes", "9"], "none: No such file"),
        (["compress", "FOLDER", "-o", "OUT", "--bytes", "9"], "got a folder"),
        (["compress", "/dev/null", "-o", "OUT", "--lossless"], "got a device or pipe"),
        (["compress", "BIASES", "-o", "OUT", "--bytes", "99"], "no leaf"),
        (["compress", "NAN", "-o", "OUT", "--bytes", "99"], "leaf 'w'"),
        (["decompress", "IN", "-o", "OUT"], "not a jpq artifact"),
        (["decompress", "DAMAGED", "-o", "OUT"], "damaged.jpq: "),
        (["inspect", "IN"], "not a jpq artifact"),
        (["inspect", "none"], "none: No such file"),
        (["inspect", "SMALL", "--reference", "none"], "none: No such file"),
        (["inspect", "SMALL", "--reference", "BIASES"], "leaf '"),
        (["compare", "IN", "none"], "none: No such file"),
        (["compare", "IN", "DAMAGED"], "damaged.jpq: "),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    args: list[str],
    message: str,
    checkpoint: Path,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    place = {"IN": checkpoint, "SMALL": small, "FOLDER": tmp_path / "folder"}
    place |= {"OUT": tmp_path / "out", "none": tmp_path / "none"}
    place |= {"BIASES": tmp_path / "b", "NAN": tmp_path / "n", "DAMAGED": tmp_path / "damaged.jpq"}
    place["FOLDER"].mkdir()
    save_file({"bias": np.ones(9, np.float32)}, place["BIASES"])
    save_file({"w": np.full((9, 9), np.nan, np.float32)}, place["NAN"])
    place["DAMAGED"].write_bytes(small.read_bytes()[:-9])
    before = sorted(tmp_path.iterdir())
    assert run(*(place.get(arg, arg) for arg in args)) == 2
    printed = capsys.readouterr()
    assert not printed.out
    [error] = [line for line in printed.err.splitlines() if not line.startswith("jpq: round ")]
    assert error.startswith("jpq: error: ")
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_fault_of_our_own_keeps_its_traceback(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(post_training, "compress", broken)
    with pytest.raises(KeyError, match="a bug"):
        run("compress", checkpoint, "-o", tmp_path / "out", "--bytes", 9999)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_full_disk_or_memory_is_an_error_of_one_line(
    error: Exception,
    checkpoint: Path,
    tmp_path: Path,
    at_once: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def full(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", full)
    assert run("compress", checkpoint, "-o", tmp_path / "out.jpq", "--bytes", 9999) == 2
    assert re.fullmatch(r"jpq: error: .*(No space|Memory).*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_lossless_is_to_the_bit(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = tmp_path / "exact.jpq"
    assert run("compress", checkpoint, "-o", small, "--lossless") == 0
    assert "without loss" in capsys.readouterr().out
    codes = jpq_jax.artifact.load(small).codes
    for name, tensor in load_file(checkpoint).items():
        assert np.asarray(codes[name]).tobytes() == tensor.tobytes()


@pytest.mark.parametrize("budget", [("--bytes", "1KB"), ("--ratio", "14.64"), ("--lossless",)])
def test_dry_run_tells_what_would_be_written(
    budget: tuple[str, ...],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    output = tmp_path / "out.jpq"
    assert run("compress", checkpoint, "-o", output, *budget, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert run("compress", checkpoint, "-o", output, *budget) == 0
    size = output.stat().st_size
    assert f"\ntotal: {size:,} bytes" in shown
    for leaf in jpq_jax.inspect(output).leaves:
        assert re.search(rf"^{re.escape(leaf.path)} .* {leaf.nbytes:,} ", shown, re.MULTILINE)
    possible = post_training.size_range(jpq_jax.read_checkpoint(checkpoint))
    assert f"possible: {possible.least:,} bytes" in shown
    assert f" to {possible.lossless:,} bytes" in shown
    assert possible.least <= size <= possible.lossless


def test_only_a_part_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole, small = tmp_path / "whole.safetensors", tmp_path / "part.jpq"
    tensors = {f"{top}.w": np.eye(9, dtype=np.float32) for top in ("params", "moments")}
    save_file(tensors, whole)
    assert run("compress", whole, "-o", small, "--lossless", "--only", "params") == 0
    [leaf] = jpq_jax.inspect(small, whole, only="params").leaves
    assert (leaf.path, leaf.distortion) == ("w", 0)
    assert run("inspect", small, "--reference", whole, "--only", "params") == 0
    assert run("compare", whole, small, "--only", "params") == 0
    capsys.readouterr()
    assert run("compare", whole, small, "--only", "none") == 2
    assert re.fullmatch(r"jpq: error: .*none.*\n", capsys.readouterr().err)


HOSTILE = [
    *NAMES,
    "line\nbreak.weight",
    "\x1b[31mred.weight",
    "层.权重",
    "a" * 300,
    "e\u0301\u200d.weight",
]


@pytest.mark.parametrize("columns", ["20", "80", "1000"])
def test_names_are_whole_and_one_to_a_line(
    columns: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    small = tmp_path / "[red" / "a[" / "red].jpq"  # in it: [/red]
    small.parent.mkdir(parents=True)
    jpq_jax.artifact.save(small, {name: jnp.eye(3) for name in HOSTILE})
    for command in (["inspect", small], ["compare", small, small]):
        assert run(*command) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        leaves, [empty, total] = rows[:-2], rows[-2:]
        assert header.startswith("leaf ")
        assert not empty
        assert total.startswith("total: ")
        assert len(leaves) == len(HOSTILE)
        shown = "\n".join(leaves)
        assert all(name in shown for name in NAMES)
        assert r"line\nbreak.weight" in shown
        assert r"\x1b[31mred.weight" in shown
        assert "\x1b" not in shown
        assert "a" * 300 in shown
    assert run("decompress", small, "-o", tmp_path / "[b].safetensors") == 0
    assert "[b].safetensors: " in capsys.readouterr().out
    assert run("decompress", small, "-o", tmp_path / "[b].safetensors") == 2
    assert "[b].safetensors: exists" in capsys.readouterr().err


def test_json_is_valid_whatever_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, value in zip(files, (0.0, np.inf), strict=True):
        save_file({"w": np.full((2, 2), value, np.float32)}, path)
    jpq_jax.artifact.save(tmp_path / "a.jpq", {"w": jnp.zeros((2, 2))}, {"of": [1, {"x": None}]})
    for command in (
        ["compare", *files],
        ["inspect", tmp_path / "a.jpq", "--reference", files[1]],
    ):
        assert run(*command, "--json") == 0
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_warnings_are_one_line_each(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def warning(params: Any, *_: Any, **__: Any) -> Any:
        for message in ("50 of 99\n  bytes [used]", "50 of 99\n  bytes [used]"):
            warnings.warn(message, UserWarning, stacklevel=1)
        return {name: np.asarray(leaf) for name, leaf in params.items()}

    monkeypatch.setattr(post_training, "compress", warning)
    assert run("compress", checkpoint, "-o", tmp_path / "out", "--bytes", 99) == 0
    assert capsys.readouterr().err == 2 * "jpq: warning: 50 of 99 bytes [used]\n"


def test_version(capsys: pytest.CaptureFixture[str]):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"jpq {jpq_jax.__version__}\n"
    assert re.match(r"\d+\.\d+", jpq_jax.__version__)


def test_called_as_a_function_it_leaves_signals_and_interrupts_to_the_caller(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(post_training, "compress", interrupted)
    assert run("compress", checkpoint, "-o", tmp_path / "out", "--bytes", 9999) == 130
    assert capsys.readouterr().err == "jpq: interrupted\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert list(tmp_path.iterdir()) == [checkpoint]


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
