"""How results came about: enough to get them again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "constriction", "safetensors")


def provenance() -> dict[str, Any]:
    """Command, commit, versions and machine."""
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else Path(sys.argv[0]).name
    return {
        "command": " ".join(["python", "-m", name, *map(_anywhere, sys.argv[1:])]),
        "commit": _commit(),
        "versions": {package: metadata.version(package) for package in _PACKAGES}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _anywhere(argument: str) -> str:
    """Without the folders of this machine: of an absolute path, its name alone."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    return option + equals + (path.name if path.is_absolute() else value)


def _commit() -> str | None:
    """The commit checked out, with "+" if tracked files differ from it; None outside a git checkout."""
    folder = str(Path(__file__).parent)

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
