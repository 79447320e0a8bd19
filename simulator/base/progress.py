"""Progress reports of long work: one protocol for every display, from file readers to searches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

CountDone = Callable[[int], None]
"""Callback with the number of items done, for work that knows neither its own name nor its
total."""


class Progress(Protocol):
    """Callback with the name of a part of the work, how much of it is done, and its total."""

    def __call__(self, name: str, done: int, total: int | None, best: str = "", /) -> None:
        """Show progress.

        Args:
            name: of this part of the work; another name begins another part.
            total: ``None`` where it is unknown.
            best: the best result so far, in words, of a search.
        """
        ...


def show_nothing(name: str, done: int, total: int | None, best: str = "", /) -> None:
    """Show no progress."""


def count_part(progress: Progress, name: str, total: int | None) -> CountDone:
    """Begin the part called ``name``, which counts to ``total``, and show it at 0."""
    progress(name, 0, total)
    return partial(_show, progress, name, total)


def _show(progress: Progress, name: str, total: int | None, done: int) -> None:
    progress(name, done, total)
