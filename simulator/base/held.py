"""Folders that belong to a running process, and folders that dead processes left behind.

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
        return [Path(e.path) for e in entries if e.name.startswith(prefix) and _is_folder(e)]
    return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


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
