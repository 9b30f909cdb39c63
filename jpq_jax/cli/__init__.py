"""`jpq`: compress a checkpoint to a target size, decompress it, inspect a file, compare two."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Annotated

import jax
import tyro

import jpq_jax
from jpq_jax.cli import interrupts
from jpq_jax.cli.commands import Command
from jpq_jax.cli.messages import one_line, say

_DESCRIPTION = """Compress a checkpoint to a target size, decompress, inspect, compare.
`jpq --version` prints the version, `jpq COMMAND --help` the options of a command.

examples:
  jpq compress model.safetensors -o model.jpq --bytes 100000
  jpq compress checkpoints/step_9000 -o model.jpq --ratio 20
  jpq decompress model.jpq -o dense.safetensors
  jpq inspect model.jpq --reference model.safetensors
  jpq compare model.safetensors model.jpq
"""

_STYLE = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)

# What the user can mend: arguments, files, disks, checkpoints that cannot be compressed or are too
# large for the memory, packages that are not installed.
_REPORTED = (ValueError, TypeError, OSError, MemoryError, ImportError)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      args: arguments; without them those of the process, which then belongs to the command:
        SIGINT, SIGTERM and SIGHUP end it at once, without a partial file.

    Returns:
      The exit status: 0; 2 if the input was at fault; 130 if it was interrupted; 141 if the reader
      of the output has gone.

    Raises:
      SystemExit: as tyro does, with 0 after `--help` and 2 for arguments that it does not know.
    """
    if args is not None:
        return _status(args)
    interrupts.end_at_once()
    if isinstance(sys.stdout, TextIOWrapper):  # names that the locale cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _status(sys.argv[1:])
    finally:
        interrupts.ignore()


def _status(args: Sequence[str]) -> int:
    try:
        with _warnings_as_lines():
            _run(args)
            if sys.stdout is not None:  # closed by `>&-`
                sys.stdout.flush()
    except BrokenPipeError:
        return _nobody_reads()
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except _REPORTED as error:
        say(f"error: {one_line(error)}")
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"error: out of memory: {one_line(error)}")
        return 2
    return 0


def _run(args: Sequence[str]) -> None:
    if list(args[:1]) == ["--version"]:
        print(f"jpq {jpq_jax.__version__}")
        return
    command = tyro.cli(
        Annotated[Command, *_STYLE],  # pyright: ignore[reportArgumentType]
        prog="jpq",
        description=_DESCRIPTION,
        args=args,
    )
    _return_freed_memory()
    command.run()


def _return_freed_memory() -> None:
    """At once, for blocks of 1 MB and more.

    By itself glibc comes to keep those of up to 32 MB, in all as much as the model takes.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**20)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Without the file and line that raised them, which tell a user of the command nothing."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"warning: {one_line(message)}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _nobody_reads() -> int:
    """As after SIGPIPE. What is buffered is not to be written when Python closes the stream."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
