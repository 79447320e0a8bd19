"""Caches in a folder of the user's, kept until they are cleared; all can be made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from simulator.base.data import find_own_folder
from simulator.base.errors import UserError

DATABASE = "findings.sqlite"
"""File that keeps the evaluations of searches."""
_DATABASE_FILES = (DATABASE, f"{DATABASE}-journal", f"{DATABASE}.damaged")
"""The database of searches, the journal of a write under way, and a damaged one set aside."""
_told: list[Callable[[], None]] = []


class Kept(NamedTuple):
    """Size of a cache."""

    folder: Path
    num_files: int
    num_bytes: int


def compiled_folder() -> Path:
    """Folder of compiled functions: in ``$NUMBA_CACHE_DIR``, or the user's cache folder."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    return Path(own) / "moesim" if own else _user_folder() / "compiled"


def findings_folder() -> Path:
    """Folder of searches' evaluations: ``$MOESIM_CACHE``, or the user's cache folder."""
    own = os.environ.get("MOESIM_CACHE")
    return Path(own) if own else _user_folder() / "plan"


def measured_folder() -> Path:
    """Folder of what was measured on this machine."""
    return _user_folder() / "measured"


def _user_folder() -> Path:
    """The user's folder of caches.

    Raises:
        UserError: if the user has no home folder.
    """
    if folder := find_own_folder(user_cache_path):
        return folder
    raise UserError(
        "there is no home folder for caches: set HOME or XDG_CACHE_HOME to a folder, or "
        "MOESIM_CACHE for those of searches"
    )


def list_caches() -> dict[str, list[Path]]:
    """List the files of each cache by its name, without files that others have put there."""
    compiled = compiled_folder()
    return {
        "compiled functions": [*compiled.glob("*.nbi"), *compiled.glob("*.nbc")],
        "findings of searches": [
            *(path for path in map(findings_folder().joinpath, _DATABASE_FILES) if path.exists()),
            *(  # of earlier versions
                path
                for path in findings_folder().glob(f"??/{'[0-9a-f]' * 64}.json")
                if path.stem.startswith(path.parent.name)
            ),
        ],
        "measurements of this machine": [
            *measured_folder().glob("sparsity-*.json"),
            *measured_folder().glob("claim-*.json"),
        ],
    }


def measure_caches() -> dict[str, Kept]:
    """Measure the size of each cache."""
    own = (compiled_folder(), findings_folder(), measured_folder())
    folders = dict(zip(list_caches(), own, strict=True))
    return {
        name: Kept(folders[name], len(files), sum(map(_measure, files)))
        for name, files in list_caches().items()
    }


def _measure(file: Path) -> int:
    """Bytes of a file; 0 where it has gone since it was listed, as a database's journal does."""
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def clear_caches() -> dict[str, Kept]:
    """Remove the files of all caches, and return the sizes that they had.

    Raises:
        OSError: if a file cannot be removed.
    """
    kept = measure_caches()
    for files in list_caches().values():
        for path in files:
            path.unlink(missing_ok=True)
    return kept


def tell_compiling(tell: Callable[[], None]) -> None:
    """Call ``tell`` before the next function is compiled; once, since others follow it."""
    _told[:] = [tell]


def say_compiling() -> None:
    """Announce that a function is about to be compiled."""
    if _told:
        _told.pop()()
