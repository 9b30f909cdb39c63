"""How far a search is: a bar on a terminal; a line every few seconds in a pipe or a log.

On stderr, as results go to stdout.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jpq_jax.cli.messages import say

_ROUNDS = 5  # that a search usually takes
_FIRST, _SECONDS = 1.0, 5.0  # until the first line, and between two
_ENOUGH = 0.1  # of a round, to tell from it how long the rest takes

Report = Callable[[int, int, int], None]


class TimeLeft:
    """When a search ends, guessed from the time of its round so far and the usual number of rounds.

    Args:
      sizes: weights of each leaf, in the order in which they are worked on.
      clock: seconds that pass.
    """

    def __init__(self, sizes: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._before = [0, *accumulate(max(size, 1) for size in sizes)]
        self._clock = clock
        self._round, self._start = 0, clock()
        self._end: float | None = None

    def update(self, round_: int, done: int, total: int) -> None:
        """With what `compress` reports: the round, leaves done in it, leaves in all."""
        now = self._clock()
        if round_ != self._round:
            self._round, self._start = round_, now
        share = self._share(done, total)
        if share >= _ENOUGH:
            of_a_round = (now - self._start) / share
            self._end = now + of_a_round * (1 - share + max(_ROUNDS - round_, 0))

    def __str__(self) -> str:
        """Nothing, where no time is known or it has passed."""
        left = 0 if self._end is None else round(self._end - self._clock())
        minutes, seconds = divmod(left, 60)
        hours, minutes = divmod(minutes, 60)
        if left <= 0:
            return ""
        return f"about {f'{hours}:{minutes:02}' if hours else minutes}:{seconds:02} left"

    def _share(self, done: int, total: int) -> float:
        """Of a round's work."""
        if total == len(self._before) - 1:
            return self._before[done] / max(self._before[-1], 1)
        return done / max(total, 1)


@contextmanager
def shown(sizes: Sequence[int]) -> Iterator[Report]:
    """Shows a search's progress, as `compress` reports it, until the block ends."""
    left = TimeLeft(sizes)
    if not is_terminal():
        yield lines(left)
        return
    with _bar() as bar:
        task = bar.add_task("reading", total=None, left=left)

        def report(round_: int, done: int, total: int) -> None:
            left.update(round_, done, total)
            bar.update(task, description=f"round {round_}", completed=done, total=total)

        yield report


def lines(left: TimeLeft, clock: Callable[[], float] = time.monotonic) -> Report:
    """Prints a line every few seconds. Goes on where nobody reads them."""
    due = clock() + _FIRST

    def report(round_: int, done: int, total: int) -> None:
        nonlocal due
        left.update(round_, done, total)
        words = str(left)
        if clock() >= due:
            due = clock() + _SECONDS
            line = f"round {round_}: {done} of {total} leaves"
            say(f"{line}, {words}" if words else line)

    return report


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    left = TextColumn("{task.fields[left]}")
    return Progress(*columns, left, console=Console(stderr=True), transient=True)


def is_terminal() -> bool:
    """Whether a bar can be drawn. Forced colours (FORCE_COLOR) do not make a pipe a terminal."""
    with suppress(AttributeError, ValueError):  # no stderr, or one that was closed
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return False


def clear() -> bytes:
    """What a terminal needs after a bar that was interrupted: an empty line, and its cursor."""
    return b"\r\x1b[K\x1b[?25h" if is_terminal() else b""
