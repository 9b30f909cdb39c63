"""One line each, on stderr: errors, warnings, progress."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def say(message: str) -> None:
    """Goes on where nobody reads it."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:  # closed by `2>&-`, where print would take stdout
            print(f"jpq: {message}", file=sys.stderr, flush=True)


def one_line(message: BaseException | str) -> str:
    """What an error or a warning says."""
    if isinstance(message, OSError) and message.filename and message.strerror:
        text = f"{os.fsdecode(message.filename)}: {message.strerror}"
    else:
        text = str(message) or type(message).__name__
    return printable(" ".join(line.strip() for line in text.splitlines()))


def printable(text: str) -> str:
    r"""As a terminal shows it in one line: line breaks, escapes, undecodable bytes as "\n", "\x1b"."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
