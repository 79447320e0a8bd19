"""Folders that belong to a running process, and unfinished results in them, beside their final
place.

Each holds a lock file, which the operating system releases however its process ends. A folder
without a lock file is not ours and is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simulator.base.errors import UserError
from simulator.base.reading import open_file

_LOCK = "moesim.lock"


@contextlib.contextmanager
def hold_folder(prefix: str, place: Path) -> Iterator[Path]:
    """Make a new folder of this process in ``place``, which is removed afterwards as far as it can
    be.

    Raises:
        OSError: if it cannot be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        with (folder / f"{_LOCK}.new").open("w") as lock:
            # Locked before it has its name: nobody finds a lock that is not held yet.
            with contextlib.suppress(OSError):  # a file system without locks: nobody takes it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(folder / f"{_LOCK}.new", folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def take_abandoned(prefix: str, place: Path) -> Iterator[list[Path]]:
    """Lock and list the folders in ``place`` whose process is dead; no other process takes them
    during this context.
    """
    with contextlib.ExitStack() as locks:
        yield [
            folder
            for folder in _find_folders(prefix, place)
            if locks.enter_context(_try_lock(folder / _LOCK))
        ]


def _find_folders(prefix: str, place: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]
    return []


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Try to take a lock for this context, and yield whether it was free."""
    try:
        lock = open_file(path)
    except UserError:  # there is none, or it is another user's
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives
            yield False
        else:
            yield True


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
