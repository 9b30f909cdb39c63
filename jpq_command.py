"""What the console script `jpq` starts.

Importing `jpq_jax.cli` imports JAX first, which takes a second. Ctrl-C in that time would end in a
traceback, or, where it meets the start of an extension module, in an ImportError. So this module,
which imports next to nothing, stands outside the package.
"""

import os
import signal
from types import FrameType


def main() -> int:
    """The command line of this process: see `jpq_jax.cli.main`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, _end)
    from jpq_jax.cli import main as command

    return command()


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, b"jpq: interrupted\n")
    os._exit(128 + number)
