"""Results of simulations on disk, keyed by all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter

from simulator import __version__
from simulator.base.caches import DATABASE
from simulator.base.data import search_folders
from simulator.base.errors import UserError
from simulator.base.home import ask_home
from simulator.base.reading import read_bytes
from simulator.planner.explore import Evaluation
from simulator.planner.trial import Outcome

_INFINITE = ConfigDict(ser_json_inf_nan="constants")
STORED_EVALUATION = TypeAdapter(Evaluation, config=_INFINITE)
STORED_OUTCOME = TypeAdapter(Outcome, config=_INFINITE)

Value = TypeVar("Value")
_TABLE = """
CREATE TABLE IF NOT EXISTS findings (
    digest TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    last_used_s INTEGER NOT NULL
)
"""
"""Values are JSON under digests by :func:`key_of`; seconds are those since 1970."""
_BUSY_S = 60.0
"""Wait for other processes, whose transactions take a millisecond; a longer one is stuck."""
_MOST_BYTES = 512 * 2**20
"""Size of the database; some 200,000 evaluations, of hundreds of questions."""
_REFRESH_S = 24 * 3600
"""Time of last use is written down once a day, so that reading hardly ever writes."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FAILED: set[Path] = set()
"""Folders that this process could not write into."""
_LEFT_OUT = ("calibration", "cli", "commands", "report", "runtime", "validation")
"""Packages that no evaluation depends on."""
_FAMILIES = (
    "workloads/models",
    "workloads/requests",
    "cluster_configs",
    "cluster_configs/accelerators",
    "cluster_configs/calibration",
)


class Store:
    """Evaluations in the database of a folder, each written whole or not at all."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder nothing is kept."""
        self.folder = folder
        self.num_recalled = 0
        """Evaluations that searches with this store found in it."""

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

    def get(self, key: str, shape: TypeAdapter[Value]) -> Value | None:
        """Read what was kept under a key; ``None`` where nothing was, or what is there cannot be
        read or has another shape.
        """
        found: bytes | None = None
        with contextlib.suppress(sqlite3.Error, OSError):
            found = ask_home(partial(self._read, key))
        try:
            return None if found is None else shape.validate_json(found, strict=True)
        except ValueError:
            return None

    def _read(self, key: str) -> bytes | None:
        rows: list[tuple[bytes, int]] = []

        def read(database: sqlite3.Connection) -> None:
            rows[:] = database.execute(
                "SELECT value, last_used_s FROM findings WHERE digest = ?", (key,)
            ).fetchall()
            now_s = int(time.time())
            if rows and rows[0][1] < now_s - _REFRESH_S:
                database.execute(
                    "UPDATE findings SET last_used_s = ? WHERE digest = ?", (now_s, key)
                )

        self._transact(read, "rw")
        return rows[0][0] if rows else None

    def recall(self, key: str, shape: TypeAdapter[Value], make: Callable[[], Value]) -> Value:
        """Read what was kept under a key, or make and keep it."""
        value = self.get(key, shape)
        if value is None:
            value = make()
            self.put(key, value, shape)
        return value

    def put(self, key: str, value: Value, shape: TypeAdapter[Value]) -> None:
        """Keep a value, where that is possible. Readers see the whole of it or nothing, whenever
        the process is killed.
        """
        if self.folder is None or self.has_failed:
            return
        row = (key, shape.dump_json(value).decode(), int(time.time()))
        try:
            ask_home(partial(self._write, row))
        except (sqlite3.Error, OSError) as error:
            _FAILED.add(self.folder)
            warnings.warn(
                f"--cache {self.folder}: cannot be written any more "
                f"({getattr(error, 'strerror', error)}), "
                "so what is found from here on is not kept for another search",
                RuntimeWarning,
                stacklevel=2,
            )

    def _write(self, row: tuple[str, str, int]) -> None:
        if self.folder is None:
            return

        def write(database: sqlite3.Connection) -> None:
            database.execute(_TABLE)
            database.execute("INSERT OR REPLACE INTO findings VALUES (?, ?, ?)", row)
            _remove_oldest(database)

        self.folder.mkdir(parents=True, exist_ok=True)
        self._transact(write, "rwc")

    @property
    def has_failed(self) -> bool:
        """Whether this process could not write into the folder, and has given that up."""
        return self.folder in _FAILED

    def _transact(self, work: Callable[[sqlite3.Connection], None], mode: str) -> None:
        """Do all of a work on the database or nothing; once more where that was damaged.

        Args:
            mode: ``rw``, or ``rwc`` to create the database.
        """
        if self.folder is None:
            return
        file = self.folder / DATABASE
        inode = file.stat().st_ino if file.exists() else None
        try:
            _run_transaction(file, work, mode)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGED:  # other bits say how
                raise
            _set_aside(file, inode)
            _run_transaction(file, work, mode)


def _run_transaction(file: Path, work: Callable[[sqlite3.Connection], None], mode: str) -> None:
    """Do a work in one transaction, which is not forced onto the disk before it ends: that takes 30
    ms, and only a machine that loses its power needs it.
    """
    address = f"{file.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(address, _BUSY_S, uri=True)) as database:
        database.text_factory = bytes
        database.execute("PRAGMA synchronous = OFF")
        with database:
            work(database)


def _remove_oldest(database: sqlite3.Connection) -> None:
    """Remove the half that was not used for longest, where the database is too large."""
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    if (pages - free) * size > _MOST_BYTES:
        database.execute(
            "DELETE FROM findings WHERE digest IN (SELECT digest FROM findings "
            "ORDER BY last_used_s LIMIT (SELECT count(*) / 2 FROM findings))"
        )


def _set_aside(file: Path, inode: int | None) -> None:
    """Rename a damaged file, unless another process has, and has begun a new one.

    Args:
        inode: of the damaged file.
    """
    if not file.exists() or file.stat().st_ino != inode:
        return
    aside = file.with_name(f"{file.name}.damaged")
    file.replace(aside)
    warnings.warn(
        f"--cache {file.parent}: {file.name} is damaged and was set aside as {aside.name}; "
        "what it held is simulated again",
        RuntimeWarning,
        stacklevel=2,
    )


def key_of(*parts: object) -> str:
    """A key for everything that an evaluation depends on, the program and its data included."""
    text = json.dumps([ask_home(program), *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def program() -> str:
    """A digest of the simulator's own files and of the data that it reads."""
    digest = hashlib.sha256(__version__.encode())
    for path in _files():
        digest.update(str(path.name).encode())
        digest.update(read_bytes(path))
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
