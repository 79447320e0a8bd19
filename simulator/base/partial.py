"""Where results lie, beside their place, before they are whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from simulator.base.held import hold_folder, take_abandoned

_PREFIX = ".moesim-partial-"
_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def hold_partial(place: Path) -> Iterator[Path]:
    """A folder in ``place`` for what is not whole yet; it is gone afterwards, and so is what killed
    processes left there of theirs.

    Raises:
        OSError: if it cannot be made.
    """
    with take_abandoned(_PREFIX, place) as folders:
        for folder in folders:
            if not _holds_both(folder):
                shutil.rmtree(folder, ignore_errors=True)
    with hold_folder(_PREFIX, place) as folder:
        yield folder


def replace_whole(partial: Path, target: Path) -> None:
    """Move what ``partial / "new"`` holds to ``target``; what was there comes back where that
    fails.

    Args:
        partial: of :func:`hold_partial`, beside the target.
    """
    try:
        if target.exists():
            target.replace(partial / _OLD)
        new_of(partial).replace(target)
    finally:
        if not target.exists() and (partial / _OLD).exists():
            (partial / _OLD).replace(target)


def new_of(partial: Path) -> Path:
    """What is to be written before :func:`replace_whole`."""
    return partial / _NEW


def _holds_both(folder: Path) -> bool:
    """Whether its process was killed between the two moves of :func:`replace_whole`, so that what
    was there before lies nowhere else.
    """
    return (folder / _NEW).exists() and (folder / _OLD).exists()
