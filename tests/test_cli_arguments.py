"""Sizes, ratios and places that users type: understood, or refused in a line before any work."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from commands import compress_at_once, run, write_checkpoint, write_small
from safetensors.numpy import load_file

import jpq_jax
from jpq_jax.cli.arguments import ratio_of, size_of


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


@pytest.fixture
def small(checkpoint: Path) -> Path:
    return write_small(checkpoint)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return compress_at_once(monkeypatch)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("50000", 50_000),
        ("50_000", 50_000),
        ("50,000", 50_000),
        ("1,234,567", 1_234_567),
        ("1e5", 100_000),
        ("1.5E3", 1500),
        ("12e-1", 1),
        (".5MB", 500_000),
        ("50KB", 50_000),
        ("50kb", 50_000),
        ("50 KB", 50_000),
        ("50k", 50_000),
        ("50KiB", 51_200),
        ("1.5MB", 1_500_000),
        ("4.35MB", 4_350_000),  # in floats a byte less
        ("1MiB", 2**20),
        ("2GB", 2_000_000_000),
        ("2GiB", 2**31),
        ("1TB", 10**12),
        ("7B", 7),
        ("1.999", 1),
        ("1" + "0" * 30, 10**30),
    ],
)
def test_sizes_that_are_understood(text: str, nbytes: int):
    assert size_of(text) == nbytes


NO_SIZES = (
    "KB -5 +5 0 0.4 0KB nan inf -inf None ten 50XB 50KBB 1,5MB 1,00 10,0000 1__0 _1 1_ 0x10 1e e5"
)
NO_SIZES += " 1e1000000000 5% 1.2.3 . \u0663 1/2"


@pytest.mark.parametrize("text", ["", " ", "5 0", "5\nKB", *NO_SIZES.split()])
def test_sizes_that_are_refused_in_a_line_before_anything_is_read(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("compress", tmp_path / "none", "-o", tmp_path / "out", f"--bytes={text}") == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"jpq: error: got --bytes {text!r}, expected ")


def test_ratios_that_are_understood():
    assert [ratio_of(text) for text in ("20", "20x", "20 X", "20:1", "2e1", "2_0", "1")] == [
        *[20] * 6,
        1,
    ]
    assert ratio_of("2.5x") == 2.5


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "-3", "0.05", "5%", "nan", "inf", "1:20", "20xx", "1/20", "None", "1e400"],
)
def test_ratios_that_are_refused_in_a_line_before_anything_is_read(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("compress", tmp_path / "none", "-o", tmp_path / "out", f"--ratio={text}") == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"jpq: error: got --ratio {text!r}, expected ")


OUTPUTS = {
    "the input": lambda folder: folder / "model.safetensors",
    "the input by another way": lambda folder: folder / "sub" / ".." / "model.safetensors",
    "a link to the input": lambda folder: folder / "link",
    "a hard link to the input": lambda folder: folder / "hard",
    "another file": lambda folder: folder / "small.jpq",
}
NEVER = {
    "a folder": lambda folder: folder / "sub",
    "no folder": lambda folder: folder / "none" / "out.jpq",
    "a file as a folder": lambda folder: folder / "small.jpq" / "out.jpq",
    "a pipe": lambda folder: folder / "pipe",
    "a device": lambda folder: "/dev/null",
    "a circular link": lambda folder: folder / "circle",
    "a folder that takes no file": lambda folder: "/proc/out.jpq",
    "a long name": lambda folder: folder / ("a" * 300),
}


@pytest.fixture
def places(checkpoint: Path, small: Path) -> Path:
    folder = checkpoint.parent
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(checkpoint)
    (folder / "hard").hardlink_to(checkpoint)
    (folder / "circle").symlink_to("circle")
    (folder / "new link").symlink_to(folder / "sub" / "new.jpq")
    os.mkfifo(folder / "pipe")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("which", [*OUTPUTS, *NEVER])
def test_an_output_that_is_there_or_cannot_be_is_refused_before_any_work(
    which: str, places: Path, at_once: list[int], capsys: pytest.CaptureFixture[str]
):
    output, before = (OUTPUTS | NEVER)[which](places), contents(places)
    for verb, name, *options in (
        ("compress", "model.safetensors", "--bytes", "9999"),
        ("compress", "model.safetensors", "--lossless", "--dry-run"),
        ("decompress", "small.jpq"),
    ):
        assert run(verb, places / name, "-o", output, *options) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert re.match(
            r"jpq: error: .*(--force|got a|no such folder|cannot write|too long)", error
        )
    assert not at_once
    assert contents(places) == before


@pytest.mark.parametrize("which", OUTPUTS)
def test_force_overwrites_files(which: str, places: Path, at_once: list[int]):
    """Also the input, of which nothing is read any more by then."""
    output, original = OUTPUTS[which](places), load_file(places / "model.safetensors")
    compressing = ("compress", places / "model.safetensors", "-o", output, "--bytes", 9999)
    assert run(*compressing, "--force") == 0
    codes = jpq_jax.artifact.load(output).codes
    assert {name: np.asarray(leaf).tolist() for name, leaf in codes.items()} == {
        name: tensor.round().tolist() for name, tensor in original.items()
    }
    assert (places / "link").is_symlink()
    assert (places / "link").resolve() == places / "model.safetensors"


@pytest.mark.parametrize("which", NEVER)
def test_force_overwrites_nothing_else(
    which: str, places: Path, at_once: list[int], capsys: pytest.CaptureFixture[str]
):
    output, before = NEVER[which](places), contents(places)
    compressing = ("compress", places / "model.safetensors", "-o", output, "--bytes", 9999)
    assert run(*compressing, "--force") == 2
    assert not at_once
    assert contents(places) == before
    assert (places / "circle").is_symlink()
    assert (places / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_link_to_a_file_that_is_not_there_yet_is_followed(places: Path, at_once: list[int]):
    output = places / "new link"
    assert run("compress", places / "model.safetensors", "-o", output, "--bytes", 9999) == 0
    assert output.is_symlink()
    assert (places / "sub" / "new.jpq").is_file()
