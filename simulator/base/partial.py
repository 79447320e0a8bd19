"""Temporary folders for unfinished results, beside their final place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from simulator.base.errors import UserError
from simulator.base.held import hold_folder, take_abandoned

_PREFIX = ".moesim-partial-"
_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def hold_partial(place: Path) -> Iterator[Path]:
    """Make a folder in ``place`` for unfinished results; it is removed afterwards, together with
    those that killed processes left there.

    Raises:
        OSError: if it cannot be made.
    """
    with take_abandoned(_PREFIX, place) as folders:
        for folder in folders:
            if not _holds_both(folder):
                shutil.rmtree(folder, ignore_errors=True)
    with hold_folder(_PREFIX, place) as folder:
        yield folder


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` when all went well.

    Raises:
        UserError: if ``target`` is a folder or cannot be written.
    """
    refuse_dangling(target, str(target))
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file to write")
    if not target.parent.is_dir():
        raise UserError(f"{target}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UserError(f"{target}: no permission to write in {target.parent}")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(hold_partial(target.parent))
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror}") from None
        partial = folder / f"new{target.suffix}"
        yield partial
        os.replace(partial, target)


def refuse_dangling(target: Path, where: str) -> None:
    """Refuse to write where a link points to nothing, which whoever made it has chosen.

    Args:
        where: how the error begins.

    Raises:
        UserError: if ``target`` is such a link.
    """
    if target.is_symlink() and not target.exists():
        raise UserError(
            f"{where}: is a link to {os.readlink(target)}, which is not there; "
            "remove the link, or name another place"
        )


def replace_whole(partial: Path, target: Path) -> None:
    """Move ``partial / "new"`` to ``target``; a former target comes back where that fails.

    Args:
        partial: of :func:`hold_partial`, beside the target.
    """
    try:
        if target.exists():
            target.replace(partial / _OLD)
        new_path(partial).replace(target)
    finally:
        if not target.exists() and (partial / _OLD).exists():
            (partial / _OLD).replace(target)


def new_path(partial: Path) -> Path:
    """Path to write to before :func:`replace_whole`."""
    return partial / _NEW


def _holds_both(folder: Path) -> bool:
    """Whether a process was killed between the two moves of :func:`replace_whole`, so that the
    former results lie nowhere else.
    """
    return (folder / _NEW).exists() and (folder / _OLD).exists()
