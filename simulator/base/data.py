"""Search of the data folders ``workloads/`` and ``cluster_configs/``.

A folder of that name in the current directory is looked at first (a user's own models and
clusters), then the one in the user's data folder (what was measured on this machine), then the one
that ships with moesim: beside the package in a checkout, inside it in an installed wheel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from platformdirs import user_data_path

from simulator.base.errors import UserError, check_known
from simulator.base.home import fetch_files, find_home_data

Loaded = TypeVar("Loaded")

_NOUNS = {"workloads": "scenario", "workloads/requests": "workload", "workloads/plans": "plan"}
"""Nouns for files whose folder's name is not one."""
_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """Find the folder that holds the shipped ``workloads/`` and ``cluster_configs/``."""
    return find_home_data() or _find_own_data()


@cache
def _find_own_data() -> Path:
    inside = _PACKAGE / "_data"
    return inside if inside.is_dir() else _PACKAGE.parent


def find_own_folder(find: Callable[..., Path]) -> Path | None:
    """Find a folder of the user's for moesim by a function of platformdirs; ``None`` where the user
    has no home.
    """
    with contextlib.suppress(RuntimeError):  # older releases of platformdirs leave a ~ instead
        if (folder := find("moesim", appauthor=False)).is_absolute():
            return folder
    return None


def data_folder() -> Path:
    """Folder of what is measured on this machine, in the order of the shipped data.

    Raises:
        UserError: if the user has no home folder.
    """
    if folder := find_own_folder(user_data_path):
        return folder
    raise UserError("there is no home folder for data: set HOME or XDG_DATA_HOME to a folder")


def search_folders(family: str) -> list[Path]:
    """Find existing folders of ``family`` (such as ``"workloads/models"``), the user's
    own first.
    """
    own = find_own_folder(user_data_path)
    bases = [Path(), *([own] if own else []), shipped_folder()]
    folders = [fetch_files(base / family, ".toml") for base in bases]
    found = [folder.resolve() for folder in folders if folder.is_dir()]
    # The current directory may be a checkout, whose files ship and come last all the same.
    return [folder for place, folder in enumerate(found) if folder not in found[place + 1 :]]


def is_shipped(family: str, name: str) -> bool:
    """Whether the file that is found under a name is one that ships."""
    return available_files(family)[name].parent == (shipped_folder() / family).resolve()


class _Known(NamedTuple):
    """Paths found and values loaded so far."""

    files: dict[str, dict[str, Path]]
    """Paths by family, then by name."""
    loaded: dict[Hashable, Any]
    """Values by key."""


_KNOWN: ContextVar[_Known | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def cache_lookups() -> Iterator[None]:
    """Cache names and loaded values within this context, also for those inside it, for searches and
    long tables, which look the same names up ten thousand times. Changes of files are not noticed
    meanwhile.
    """
    if _KNOWN.get() is not None:
        yield
        return
    token = _KNOWN.set(_Known({}, {}))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def load_once(key: Hashable, load: Callable[[], Loaded]) -> Loaded:
    """Load a value, once for each key within :func:`cache_lookups`. Exceptions of ``load`` pass."""
    known = _KNOWN.get()
    if known is None:
        return load()
    if key not in known.loaded:
        known.loaded[key] = load()
    loaded: Loaded = known.loaded[key]
    return loaded


def available_files(family: str) -> dict[str, Path]:
    """Map the name (file stem) of every TOML file of ``family`` to its path; the user's own files
    win.

    Raises:
        UserError: if a folder cannot be read: what it holds might be meant.
    """
    known = _KNOWN.get()
    if known is None:
        return _available_files(family)
    if family not in known.files:
        known.files[family] = _available_files(family)
    return dict(known.files[family])


def _available_files(family: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    try:
        for folder in search_folders(family):
            for file in sorted(os.listdir(folder)):
                name, _, ending = file.rpartition(".")
                if name and ending == "toml":
                    files.setdefault(name, folder / file)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return files


def find_file(family: str, name: str, where: str) -> Path:
    """Find the TOML file called ``name`` in ``family``.

    Raises:
        UserError: if there is none, the nearest name being suggested, or a folder cannot be read.
    """
    files = available_files(family)
    noun = _NOUNS.get(family, family.rsplit("/", 1)[-1].removesuffix("s"))
    check_known(name, files, f"{where}: unknown {noun}")
    return files[name]
