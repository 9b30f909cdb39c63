"""Result files, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jpq_jax.artifact.file import write_whole


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON; a crash leaves what was there."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read_found(path: Path, settings: dict[str, Any]) -> Any:
    """What a run that was stopped had found, or None. The file has it as `found`, beside its `settings`.

    Raises:
      ValueError: if it was found with other settings.
    """
    if not path.exists():
        return None
    before = json.loads(path.read_text())
    if before["settings"] != settings:
        raise ValueError(f"{path}: found with {before['settings']}, expected {settings}")
    return before["found"]
