"""CI finds the Pythons that are newer than its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEWER = Path(__file__).parent.parent / ".ci" / "newer"

# As an interpreter of another version would answer; called with -c PROGRAM ARGUMENT.
PRETEND = """#!/bin/sh
exec {python} -c '
import sys
from types import SimpleNamespace
sys.version_info = SimpleNamespace(major=3, minor={minor}, releaselevel="{level}")
sys.executable, sys.abiflags = "{path}", "{flags}"
exec(sys.argv.pop(1))
' "$2" "$3"
"""


def pretend(path: Path, minor: int, level: str = "final", flags: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PRETEND.format(python=sys.executable, minor=minor, level=level, path=path, flags=flags)
    path.write_text(text)
    path.chmod(0o755)
    return f"{minor} {path}"


def broken(path: Path) -> None:
    """A shim of a version that is not chosen."""
    path.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Its own Python is 3.11, and it has the tools that the script calls."""
    pretend(tmp_path / "bin" / "python3", 11)
    for tool in ("bash", "sort", "grep"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def newer(machine: Path) -> list[str]:
    env = {"PATH": str(machine / "bin"), "HOME": str(machine)}
    done = subprocess.run([NEWER], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_machine_with_one_python_has_no_newer(machine: Path) -> None:
    pretend(machine / "bin" / "python3.11", 11)
    pretend(machine / "bin" / "python3.9", 9)
    pretend(machine / ".pyenv/versions/3.10.13/bin/python3", 10)
    assert newer(machine) == []


def test_the_newest_comes_first_and_each_version_once(machine: Path) -> None:
    on_path = pretend(machine / "bin" / "python3.12", 12)
    pretend(machine / ".pyenv/versions/3.12.1/bin/python3", 12)
    of_pyenv = pretend(machine / ".pyenv/versions/3.13.0/bin/python3", 13)
    two_digits = pretend(machine / "bin" / "python3.100", 100)
    assert newer(machine) == [two_digits, of_pyenv, on_path]


def test_what_is_no_released_interpreter_is_left_out(machine: Path) -> None:
    pretend(machine / "bin" / "python3.15", 15, level="alpha")
    pretend(machine / ".pyenv/versions/3.14.0t/bin/python3", 14, flags="t")
    pretend(machine / "bin" / "python3.14-config", 14)
    broken(machine / "bin" / "python3.13")
    found = pretend(machine / ".pyenv/versions/3.13.0/bin/python3", 13)
    assert newer(machine) == [found]


def test_a_folder_with_a_space(machine: Path) -> None:
    moved = machine / "of mine"
    (machine / "bin").rename(moved)
    found = pretend(moved / "python3.13", 13)
    env = {"PATH": str(moved)}
    done = subprocess.run([NEWER], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [found]
