"""The `jpq` command as a process: interrupted at any moment, in pipes, on terminals, in any locale."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from compiled import THOROUGH
from safetensors.numpy import save_file

from jpq_jax import artifact

ROOT = Path(__file__).parent.parent
SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["jpq"]
MODULE, FUNCTION = SCRIPT.split(":")

# As the console script does it; the dot tells that Python itself is up.
START = (
    f"import os, sys; os.write(1, b'.'); from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"
)
COMPRESS = "import jpq_jax.post_training as post_training"
HANGS = f"""{COMPRESS}
import jax
def hangs(params, budget, progress):
    progress(1, 1, 2)
    os.write(1, b"!")
    jax.jit(lambda x: jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1) % 7, x))(0).block_until_ready()
post_training.compress = hangs
"""
WRITES = """
import time
def fsync(_):
    os.write(1, b"!")
    time.sleep(600)
os.fsync = fsync
"""


# Tests may run in the background of a shell, which has its children ignore SIGINT.
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    rng = np.random.default_rng(0)
    save_file({"w": rng.laplace(size=(60, 50)).astype(np.float32)}, path)
    return path


def start(*args: object, patch: str = "", **options: object) -> subprocess.Popen[bytes]:
    code = f"{LISTENS}\nimport os\n{patch}\n{START}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "FORCE_COLOR": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    env = environment | streams.pop("variables", {})
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, **streams)


def reached(process: subprocess.Popen[bytes], sign: bytes) -> None:
    assert process.stdout is not None
    while (read := process.stdout.read(1)) != sign:
        assert read, process.communicate()[1].decode()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, error


def compressing(checkpoint: Path, output: Path) -> list[object]:
    return ["compress", checkpoint, "-o", output, "--bytes", 1000]


MOMENTS = np.arange(0.02, 8, 0.1) if THOROUGH else np.array([0.02, 0.1, 0.3, 0.6, 1, 2, 4])


def test_interrupted_at_any_moment(checkpoint: Path, tmp_path: Path):
    def interrupted(moment: float) -> tuple[int, bytes, bool]:
        output = tmp_path / f"{moment:.2f}.jpq"
        process = start(*compressing(checkpoint, output))
        reached(process, b".")
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        status, _, error = ended(process)
        return status, error, output.exists()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(interrupted, MOMENTS))
    for status, error, written in found:
        said = [line for line in error.splitlines() if not line.startswith(b"jpq: round ")]
        assert (status, said, written) in (
            (130, [b"jpq: interrupted"], False),
            (130, [b"jpq: interrupted"], True),  # between the file and the end
            (0, [], True),
        )
    assert found[0][0] == found[1][0] == 130  # where it only just imports
    assert not found[0][2]
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".jpq"}
    for path in tmp_path.glob("*.jpq"):
        artifact.load(path)


def test_interrupted_where_python_does_not_come_back(checkpoint: Path, tmp_path: Path):
    process = start(*compressing(checkpoint, tmp_path / "out.jpq"), patch=HANGS)
    reached(process, b"!")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        *([([signal.SIGHUP], 129)] if THOROUGH else []),
    ],
)
def test_interrupted_while_it_writes(
    numbers: list[signal.Signals], status: int, checkpoint: Path, tmp_path: Path
):
    output = tmp_path / "out.jpq"
    output.write_bytes(b"as it was")
    process = start("compress", checkpoint, "-o", output, "--lossless", "--force", patch=WRITES)
    reached(process, b"!")
    assert len(list(tmp_path.iterdir())) == 3  # what it writes, too
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    assert ended(process)[::2] == (status, b"jpq: interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} == {"out.jpq", "model.safetensors"}
    assert output.read_bytes() == b"as it was"


def test_in_the_background_of_a_script_it_is_not_interrupted(checkpoint: Path, tmp_path: Path):
    output = tmp_path / "out.jpq"
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as a shell does
    process = start("compress", checkpoint, "-o", output, "--lossless", patch=ignored)
    reached(process, b".")
    for _ in range(10):
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 0
    artifact.load(output)


def test_on_a_terminal_there_is_a_bar_that_goes_when_it_is_interrupted(
    checkpoint: Path, tmp_path: Path
):
    ours, terminal = pty.openpty()
    arguments = compressing(checkpoint, tmp_path / "out.jpq")
    process = start(*arguments, patch=HANGS, stderr=terminal, variables={"TERM": "xterm"})
    os.close(terminal)
    reached(process, b"!")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert b"round 1" in shown
    _, hidden, after = shown.rpartition(b"\x1b[?25l")  # the cursor
    assert hidden
    assert after.endswith(b"\r\x1b[K\x1b[?25hjpq: interrupted\r\n")


def test_nobody_reads(tmp_path: Path):
    """`jpq inspect model.jpq | head -0`: as of other commands."""
    artifact.save(tmp_path / "a.jpq", {"w": np.eye(2, dtype=np.float32)})
    process = start("inspect", tmp_path / "a.jpq", variables={"PYTHONUNBUFFERED": ""})
    reached(process, b".")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert ended(process)[::2] == (141, b"")


@pytest.mark.parametrize("closed", [1, 2] if THOROUGH else [2])
def test_closed_streams(closed: int, checkpoint: Path, tmp_path: Path):
    shell = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-m", "jpq_jax.cli"]
    arguments = ["compress", checkpoint, "-o", tmp_path / "out.jpq", "--lossless"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run([*shell, *map(str, arguments)], env=environment, capture_output=True)
    assert done.returncode == 0
    assert (done.stdout + done.stderr == b"") == (closed == 1)
    artifact.load(tmp_path / "out.jpq")


def test_names_that_the_locale_lacks(tmp_path: Path):
    name = "\u5c42.\u6743\u91cd"
    artifact.save(tmp_path / "a.jpq", {name: np.eye(2, dtype=np.float32)})
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, out, error = ended(start("inspect", tmp_path / "a.jpq", variables=plain))
    assert (status, error) == (0, b"")
    assert rb"\u5c42.\u6743\u91cd " in out
    assert b"\x1b" not in out  # colours, though they are forced
