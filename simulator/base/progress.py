"""What long work says of where it is: one protocol for whoever shows it, from reader to search."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

CountDone = Callable[[int], None]
"""Told how many are done, by work that knows neither its own name nor how much there is."""


class Progress(Protocol):
    """Told what is being done, how much of it is done, and how much there is."""

    def __call__(self, name: str, done: int, total: int | None, best: str = "", /) -> None:
        """Show it.

        Args:
            name: of this part of the work; another name begins another part.
            total: ``None`` where nobody knows.
            best: the best that was found so far, in words, where something is searched for.
        """
        ...


def show_nothing(name: str, done: int, total: int | None, best: str = "", /) -> None:
    """A :class:`Progress` that nobody looks at."""


def count_part(progress: Progress, name: str, total: int | None) -> CountDone:
    """The part called ``name``, which counts to ``total``; shown at 0 from now on."""
    progress(name, 0, total)
    return partial(_show, progress, name, total)


def _show(progress: Progress, name: str, total: int | None, done: int) -> None:
    progress(name, done, total)
