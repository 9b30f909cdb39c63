"""An interrupted command ends at once, with 128 + the signal's number, and leaves no partial file.

Python's own way, to raise KeyboardInterrupt in the main thread, does not get there: the exception
is lost in JAX's callback of the garbage collector, waits until XLA has compiled, and leaves threads
behind that crash when Python ends. So nothing is raised: the process ends where it is.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress

from jpq_jax.artifact.file import unfinished
from jpq_jax.cli.progress import clear

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_ending = threading.RLock()


def end_at_once() -> None:
    """From here on, on SIGINT, SIGTERM or SIGHUP. To be called in the main thread.

    Signals that are ignored (`nohup`, `&` in a script) stay so.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: _end(number))
    # Python calls a handler when the main thread is back from what it has called, say XLA's
    # compiler. Until then a thread listens.
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ours, pythons), daemon=True).start()


def ignore() -> None:
    """From here on: the work is done."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _listen(ours: socket.socket, _pythons: socket.socket) -> None:
    """Leaves a process that writes a file to the handler, as the file may just be being made."""
    while received := ours.recv(1):
        if received[0] in _SIGNALS and not unfinished:
            _end(received[0])


def _end(number: int) -> None:
    with _ending:  # the handler and the thread may come at once
        for path in list(unfinished):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            os.write(2, clear() + b"jpq: interrupted\n")
        os._exit(128 + number)
