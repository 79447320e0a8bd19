"""Files of Ray (sessions, sockets, logs, address and token), kept apart from other clusters of this
machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from simulator.base.partial import hold_folder, take_abandoned
from simulator.runtime.orphans import find_writers, kill_left

_LONGEST_BYTES = 31
"""Longest path of the folder, in bytes. macOS allows 103 bytes for a socket's, and Ray appends up
to 72 (session, process, ``sockets/plasma_store``)."""
_PREFIX = "moesim-"
_ENDS_S = 10.0
"""Seconds after which Ray's processes have ended and write nothing any more."""
_VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR")
"""Environment variables that lead Ray to a cluster, or that it sets when it starts one."""


@contextlib.contextmanager
def keep_variables() -> Iterator[None]:
    """Restore Ray's own environment variables in the end; within the context, none of them names a
    cluster.
    """
    before = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def isolate_ray_files() -> Iterator[Path]:
    """Make a new temporary folder for all files of clusters that this process starts; it is removed
    afterwards.

    Otherwise Ray would write its cluster's address over that of the user's own cluster, and a token
    into the home folder, which ``ray start`` asks for from then on.
    """
    place = _find_short_place()
    place.mkdir(parents=True, exist_ok=True)  # as Ray would
    with hold_folder(_PREFIX, place) as folder:
        try:
            with keep_variables():
                os.environ["RAY_TMPDIR"] = str(folder)
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
                yield folder
        finally:
            kill_left(find_writers(folder))  # of a start that was cut short
            remove(folder)


def remove_dead_clusters() -> None:
    """Remove the remains of clusters whose process was killed before it could end them: Ray's
    agents, which may go on for ever, and their folder.
    """
    with (
        contextlib.suppress(FileNotFoundError),  # no folder for temporary files can be written
        take_abandoned(_PREFIX, _find_short_place()) as folders,
    ):
        for folder in folders:
            kill_left(find_writers(folder))
            remove(folder)


def _find_short_place() -> Path:
    """Find the folder for temporary files, unless the sockets' paths would become too
    long there.
    """
    wanted = os.path.abspath(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    is_short = len(os.fsencode(wanted)) + len(f"/{_PREFIX}12345678") <= _LONGEST_BYTES
    return Path(wanted if is_short else "/tmp")


def remove(folder: Path) -> None:
    """Remove a folder that ending processes may still write into."""
    until_s = time.monotonic() + _ENDS_S
    while folder.exists() and time.monotonic() < until_s:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
