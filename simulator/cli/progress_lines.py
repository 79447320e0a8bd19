"""Progress of long work and estimates of the rest, in lines: for a pipe, on which no bar can be
drawn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simulator.base.text import one_line

EVERY_S = 10.0
"""Seconds without a line after which one comes: often enough for a person to see that it goes
on, and 360 lines in an hour's log."""
_GLANCE_S = 1.0
"""Seconds between two checks whether a line is due."""


def tell_time(elapsed_s: float, done: int, total: int | None) -> str:
    """Describe the elapsed time of a part and, from its progress, an estimate of the rest.

    Args:
        done: items done of the part's ``total``; ``None`` where the total is unknown.

    >>> tell_time(12.0, 3, 9), tell_time(12.0, 0, 9), tell_time(12.0, 9, 9)
    ('12 s so far, about 24 s left', '12 s so far', '12 s')
    """
    from simulator.base.formats import seconds_text

    past = seconds_text(float(round(elapsed_s)))
    if total is not None and done >= total:
        return past
    if not total or not done:
        return f"{past} so far"
    left = seconds_text(float(round(elapsed_s * (total - done) / done)))
    return f"{past} so far, about {left} left"


class Lines:
    """Printer of :class:`~simulator.base.progress.Progress` that announces each part, and its
    progress when nothing was printed for ten seconds.
    """

    def __init__(
        self,
        unit: str,
        waiting: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a line said.

        Args:
            unit: what is counted, in the plural.
            waiting: the part that lasts until the first name comes.
            say: prints a line.
            clock: seconds, from any beginning.
        """
        self._unit, self._say, self._clock = unit, say, clock
        self._begun = {waiting: clock()}
        self._now: tuple[str, int, int | None] = (waiting, 0, None)
        self._best = ""
        self._said_s = clock()

    def __call__(self, name: str, done: int, total: int | None, best: str = "", /) -> None:
        name, best = one_line(name), one_line(best)
        is_new = name not in self._begun
        self._begun.setdefault(name, self._clock())
        self._now = name, done, total
        if is_new and total is not None:
            self._print(f"{name}: {total:,} {self._unit}".rstrip())
        if best and best != self._best:
            self._best = best
            self._print(f"best so far: {best}")

    def say_if_due(self) -> None:
        """Print the progress of the part, unless a line came a short while ago."""
        if self._clock() - self._said_s < EVERY_S:
            return
        name, done, total = self._now
        count = f"{done:,} of {total:,} {self._unit}".rstrip() + ", " if total else ""
        self._print(f"{name}: {count}{tell_time(self._clock() - self._begun[name], done, total)}")

    def _print(self, line: str) -> None:
        self._said_s = self._clock()
        self._say(line)


@contextmanager
def keep_saying(lines: Lines) -> Iterator[None]:
    """Print lines when they are due, however long the work goes without a word."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_GLANCE_S):
            lines.say_if_due()

    thread = threading.Thread(target=look, name="says progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
