"""Files of the machine where the command was given, for processes on other machines of a cluster.

Such a process fetches a file when it is first named, into a folder of its own that stands for the
other machine's root: ``/home/ann/own.toml`` lies at ``<root>/home/ann/own.toml``, and what is named
relative to it is found there too. Its current folder stands for the command's. Whoever asks about a
file before opening it says :func:`fetch` first. Everywhere else paths stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

Answer = TypeVar("Answer")

_PACKAGE = Path(__file__).resolve().parents[1]
_PART_BYTES = 64 << 20
"""Bytes of a file that are fetched at once."""


class AskFar(Protocol):
    """Callback that calls a function on another machine."""

    def __call__(self, function: Callable[[], Answer], /) -> Answer:
        """Return what the function returns there."""
        ...


class Far(NamedTuple):
    """Another machine, whose files are fetched."""

    root: Path
    """Folder on this machine that stands for its root."""
    ask: AskFar
    known: dict[tuple[Path, str | None], bool]
    """Whether there is something at a path there, of those that were asked for, each with the
    ending of the files that were fetched with it; ``None`` = none were."""


class _State:
    """Knowledge that this process has of the command's machine."""

    far: Far | None = None
    """``None`` on that machine itself."""
    shipped: Path | None = None
    """Folder there of the data that ship; ``None`` in the command's own process."""


def join_home(folder: Path, shipped: Path, far: Far | None) -> None:
    """Take another process's current folder and files for this one's.

    Args:
        folder: its current folder.
        shipped: the folder of its data that ship.
        far: its machine; ``None`` if it is this one.
    """
    _State.far, _State.shipped = far, shipped
    if far is not None:
        folder = far.root / folder.relative_to("/")
        folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)


def find_home_data() -> Path | None:
    """Folder of the command's own data that ship; ``None`` in its own process."""
    return _State.shipped


def ask_home(function: Callable[[], Answer]) -> Answer:
    """Call a function on the machine where the command was given."""
    return function() if _State.far is None else _State.far.ask(function)


def fetch(path: Path) -> Path:
    """Copy a file of the command's to this machine, if it is on another, or make an empty folder
    for one there. Returns where it lies; the path itself where there is none.
    """
    return path if _State.far is None else _find(_State.far, path, None)


def fetch_files(folder: Path, ending: str = "") -> Path:
    """Fetch a folder with the files of one ending that lie right in it; a file as :func:`fetch`
    does.
    """
    return folder if _State.far is None else _find(_State.far, folder, ending)


def name_at_home(text: str) -> str:
    """A text with the paths that the command's machine has."""
    return text if _State.far is None else text.replace(str(_State.far.root), "")


def _find(far: Far, path: Path, ending: str | None) -> Path:
    there = Path(os.path.abspath(path))
    if there.is_relative_to(_PACKAGE):
        return path
    if there.is_relative_to(far.root):
        there = Path("/") / there.relative_to(far.root)
    if (there, ending) not in far.known:
        far.known[there, ending] = _copy(far, there, ending)
    is_known = far.known[there, ending]
    return far.root / there.relative_to("/") if is_known and path.is_absolute() else path


def _copy(far: Far, there: Path, ending: str | None) -> bool:
    """Copy what is at a path, and say whether there is anything."""
    found = far.ask(partial(_look, there, ending))
    here = far.root / there.relative_to("/")
    if isinstance(found, int):
        here.parent.mkdir(parents=True, exist_ok=True)
        with here.open("wb") as file:
            for start in range(0, found, _PART_BYTES):
                file.write(far.ask(partial(_read, there, start)))
        far.known[there, None] = True
    elif found is not None:
        here.mkdir(parents=True, exist_ok=True)
        for name, content in found.items():
            (here / name).write_bytes(content)
            far.known[there / name, None] = True
    return found is not None


def _look(path: Path, ending: str | None) -> int | dict[str, bytes] | None:
    """Size of a file, or what a folder's own files of an ending hold; ``None`` for anything else,
    which may block.
    """
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    files = [] if ending is None else path.glob(f"*{ending}")
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_PART_BYTES)
