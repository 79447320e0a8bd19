"""What is kept in a folder of the user's until it is cleared, and could be made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

DATABASE = "findings.sqlite"
"""The file that findings of searches are kept in."""
_told: list[Callable[[], None]] = []


class Kept(NamedTuple):
    """What a cache holds."""

    folder: Path
    num_files: int
    num_bytes: int


def compiled_folder() -> Path:
    """Where compiled functions are kept: in ``$NUMBA_CACHE_DIR``, or the user's cache folder."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    return Path(own) / "moesim" if own else _user_folder() / "compiled"


def findings_folder() -> Path:
    """Where findings of searches are kept: ``$MOESIM_CACHE``, or the user's cache folder."""
    own = os.environ.get("MOESIM_CACHE")
    return Path(own) if own else _user_folder() / "plan"


def _user_folder() -> Path:
    return user_cache_path("moesim", appauthor=False)


def list_caches() -> dict[str, list[Path]]:
    """The files of each cache by its name; what others have put there is left out."""
    compiled = compiled_folder()
    return {
        "compiled functions": [*compiled.glob("*.nbi"), *compiled.glob("*.nbc")],
        "findings of searches": [
            *findings_folder().glob(f"{DATABASE}*"),
            *findings_folder().glob(f"??/{'[0-9a-f]' * 64}.json"),  # of earlier versions
        ],
    }


def measure_caches() -> dict[str, Kept]:
    """How large each cache is."""
    folders = dict(zip(list_caches(), (compiled_folder(), findings_folder()), strict=True))
    return {
        name: Kept(folders[name], len(files), sum(path.stat().st_size for path in files))
        for name, files in list_caches().items()
    }


def clear_caches() -> dict[str, Kept]:
    """Remove the files of all caches, and say what was there.

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
    """A function is about to be compiled."""
    if _told:
        _told.pop()()
