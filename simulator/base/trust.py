"""Permission to run code: moesim's own and that of installed packages may run; that of the current
folder only where the user says so.

Files come from strangers: a scenario, the model or cluster that it names, and whatever else lies in
the folder that they were unpacked in. Reading them must run none of their code. A dotted kind
(``"my_package.my_policy"``) is the one place where a file names code, and Python's import is what
runs it, so this module stands in front of that import:

- A module of an *installed* package is imported: one in a folder of this interpreter's packages
  (``site-packages``), or in a project that is installed in editable mode and does not lie in the
  current folder. Whoever installed it trusts it.
- Everything else needs ``--allow-code``, which is given on the command line, or
  :func:`allow_code`, which a program calls: no file can grant it. That is the current folder, what
  ``PYTHONPATH`` leads to, Python's standard library (importing a module of it may open a browser),
  and any ``__main__``, which is a program and not a policy.

The current folder is never on ``sys.path`` by itself, where a file that is called like an optional
dependency would be imported by whoever looks for that. ``--allow-code`` appends it behind
everything else when a dotted kind first needs it. Worker processes are told what was allowed where
the command was given (:func:`allow_as_sender`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from urllib.parse import unquote, urlsplit

from simulator.base.errors import UserError
from simulator.base.home import fetch

FLAG = "--allow-code"
"""The option of the command line that allows the current folder's code."""
_OWN = Path(__file__).resolve().parents[1]
"""The folder of moesim's own package."""


class _Allowed:
    """State of ``--allow-code`` in this process."""

    folder: Path | None = None


def allow_code(folder: str | Path | bool | None = True) -> None:
    """Let dotted kinds import any module that Python finds, those in a folder too.

    Args:
        folder: ``True`` = the current folder, as with ``--allow-code``; ``False`` or ``None`` =
            installed packages only, and no folder.
    """
    if isinstance(folder, bool):
        folder = Path.cwd() if folder else None
    _Allowed.folder = None if folder is None else Path(folder)


def allowed_folder() -> Path | None:
    """Folder that :func:`allow_code` was last called with, for worker processes."""
    return _Allowed.folder


def allow_as_sender(folder: Path | None) -> None:
    """Allow in a worker process what the sender of its work allows; objects of the user's classes
    that come with the work can be unpickled then.
    """
    allow_code(folder)
    if folder is not None:
        _append(folder)
        sys.meta_path.append(_FromHome())


class _FromHome(MetaPathFinder):
    """Finder of modules in the folder that was allowed, where that is on another machine."""

    def find_spec(
        self, name: str, path: Iterable[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        allowed = _Allowed.folder
        if allowed is None or (top := fetch(allowed)) == allowed:
            return None
        folders = [top] if path is None else [Path(one) for one in path]
        own, last = [one for one in folders if one.is_relative_to(top)], name.rpartition(".")[2]
        for folder in own:
            for file in (last, f"{last}/__init__.py", f"{last}.py"):
                fetch(folder / file)
        importlib.invalidate_caches()  # of folders, which are looked at as often as clocks tick
        return PathFinder.find_spec(name, list(map(str, own))) if own else None


def forget_current_folder() -> None:
    """Remove the current folder from ``sys.path``, where ``python -m`` and an empty entry of
    ``PYTHONPATH`` put it, unless moesim itself lies there, which worker processes import anew;
    modules imported already stay.
    """
    with contextlib.suppress(OSError):  # it was removed: nothing can be imported from it
        current = Path.cwd()
        if current not in {*_package_folders(), _OWN.parent}:
            sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != str(current)]


def admit(name: str, what: str) -> None:
    """Refuse a dotted kind whose module may not be imported; make any other importable.

    Args:
        name: of the module, with its dots.
        what: who names it, as an error begins: ``"s.toml [routing]: routing kind 'a.b'"``.

    Raises:
        UserError: if it is no module's name, is not there, or needs ``--allow-code``.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{what} is no name of a Python module")
    if _Allowed.folder is not None:
        _append(_Allowed.folder)
    else:
        _check(name, what)


def is_installed(place: Path) -> bool:
    """Whether a file lies in this interpreter's packages, or in a project that is installed in
    editable mode.
    """
    found = place.resolve()
    return any(map(found.is_relative_to, (*_package_folders(), *_editable_folders())))


def _is_trusted(place: Path) -> bool:
    """Whether a module's file needs no ``--allow-code``. An environment in the current folder
    (``.venv``) belongs to this interpreter; an editable project there is work in progress and does
    not.
    """
    found = place.resolve()
    if any(map(found.is_relative_to, (_OWN, *_package_folders()))):
        return True
    return is_installed(place) and not found.is_relative_to(Path.cwd())


def _check(name: str, what: str) -> None:
    top, is_program = name.partition(".")[0], "__main__" in name.split(".")
    spec = _find(top)
    if spec is None and not is_program:
        raise UserError(f"{what}: there is no module '{top}', installed or in the current folder")
    places = _places(spec) if spec else []
    if is_program:
        reason = "is a program, not a policy"
    elif top in sys.stdlib_module_names:
        reason = "belongs to Python's standard library"
    elif not places or not all(map(_is_trusted, places)):
        reason = "is no installed package"
    else:
        return
    place = places[0] if places else "Python itself"
    raise UserError(
        f"{what} would run code: importing '{name}' from {place}, which {reason}; "
        f"if you trust it, say {FLAG}, or simulator.allow_code() in Python"
    )


def _find(top: str) -> ModuleSpec | None:
    """Find a top-level module as Python would, without running it, or else in the
    current folder.
    """
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # the program that runs, which nobody imported
        spec = None
    return spec or PathFinder.find_spec(top, [str(Path.cwd())])


def _places(spec: ModuleSpec) -> list[Path]:
    """List a module's file, and every folder that a package's modules come from."""
    files = [spec.origin] if spec.has_location and spec.origin else []
    return [Path(place) for place in (*files, *(spec.submodule_search_locations or ()))]


def _append(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@cache
def _package_folders() -> frozenset[Path]:
    """Folders of this interpreter's installed packages."""
    named = [*site.getsitepackages(), *(sysconfig.get_path(key) for key in ("purelib", "platlib"))]
    if site.ENABLE_USER_SITE:
        named.append(site.getusersitepackages())
    return frozenset(Path(folder).resolve() for folder in named)


@cache
def _editable_folders() -> tuple[Path, ...]:
    """Projects that are installed in editable mode."""
    found = importlib.metadata.distributions()
    origins = [json.loads(one.read_text("direct_url.json") or "{}") for one in found]
    return tuple(
        Path(unquote(urlsplit(origin["url"]).path)).resolve()
        for origin in origins
        if origin.get("dir_info", {}).get("editable")
    )
