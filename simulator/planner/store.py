"""What was explored, on disk, keyed by its whole content: a search that was killed or extended goes
on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from simulator import __version__
from simulator.base.data import search_folders
from simulator.base.errors import UserError

Kept = TypeVar("Kept")
_FAILED: set[Path] = set()
"""Folders that this process could not write into."""
_LEFT_OUT = ("calibration", "cli", "commands", "report", "runtime", "validation")
"""Packages that no finding depends on."""
_FAMILIES = (
    "workloads/models",
    "workloads/requests",
    "cluster_configs",
    "cluster_configs/accelerators",
    "cluster_configs/calibration",
)


class Store:
    """A folder of findings, one file each, written whole or not at all."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder nothing is kept."""
        self.folder = folder

    def check_writable(self) -> None:
        """Refuse a folder in which nothing can be kept, before any work is done.

        Raises:
            UserError: with what stands in the way.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}.partial"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--cache {self.folder}: cannot be written: {error.strerror}; name another folder"
            ) from None

    def get(self, key: str, shape: TypeAdapter[Kept]) -> Kept | None:
        """What was kept under the key; ``None`` where nothing was, or what is there cannot be read
        or has another shape.
        """
        if self.folder is None:
            return None
        try:
            return shape.validate_json(self._path(key).read_bytes(), strict=True)
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep it, where that is possible. Readers see the whole file or none, whenever the process
        is killed.
        """
        if self.folder is None or self.has_failed:
            return
        try:
            self._write(self._path(key), json.dumps(value))
        except OSError as error:
            _FAILED.add(self.folder)
            warnings.warn(
                f"--cache {self.folder}: cannot be written any more ({error.strerror}), "
                "so what is found from here on is not kept for another search",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def has_failed(self) -> bool:
        """Whether this process could not write into the folder, and has given that up."""
        return self.folder in _FAILED

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(
            f".{path.stem}-{os.uname().nodename}-{os.getpid()}.partial"
        )  # other machines may share the folder
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if self.folder is None:
            raise ValueError("nothing is kept")
        return self.folder / key[:2] / f"{key}.json"


def key_of(*parts: Any) -> str:
    """A key for everything that a finding depends on, the program and its data included."""
    text = json.dumps([program(), *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def program() -> str:
    """A digest of the simulator's own files and of the data that it reads."""
    digest = hashlib.sha256(__version__.encode())
    for path in _files():
        digest.update(str(path.name).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    package = Path(__file__).resolve().parent.parent
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _LEFT_OUT:
            yield path
    for family in _FAMILIES:
        for folder in search_folders(family):
            yield from sorted(
                folder.rglob("*.toml") if family.endswith("calibration") else folder.glob("*.toml")
            )
