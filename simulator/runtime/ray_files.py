"""Files and processes of Ray: its sessions, sockets, logs, address and token are kept apart from
other clusters of this machine, and what outlives a command is ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from simulator.base.errors import INTERRUPTED
from simulator.base.partial import hold_folder, take_abandoned

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


# Processes that outlive, for a while, the one that started them: Ray's agents check for their
# raylet only from time to time.


Process = tuple[int, str]
"""Process by its id and start time: ids are reused."""


def find_started_by(pids: Iterable[int]) -> set[Process]:
    """Find all descendants of some processes."""
    table, found, parents = _read_table(), set[Process](), set(pids)
    while parents:
        children = {(pid, start) for pid, (parent, start) in table.items() if parent in parents}
        parents = {pid for pid, _ in children - found}
        found |= children
    return found


def find_writers(folder: Path) -> set[Process]:
    """Find other processes that have a file below a folder open to write; none where there is no
    ``/proc``.
    """
    found = {pid for pid in _pids() if pid != os.getpid() and _writes_below(folder, pid)}
    table = _read_table() if found else {}
    return {(pid, table[pid][1]) for pid in found if pid in table}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _writes_below(folder: Path, pid: int) -> bool:
    """Whether a process has a file of a folder open for writing."""
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        return any(
            os.readlink(entry).startswith(f"{folder}/") and entry.lstat().st_mode & stat.S_IWUSR
            for entry in Path(f"/proc/{pid}/fd").iterdir()
        )
    return False


def kill_left(processes: set[Process]) -> None:
    """Kill those processes that still run."""
    table = _read_table() if processes else {}
    for pid, start in processes:
        if pid in table and table[pid][1] == start:
            with contextlib.suppress(OSError):  # gone, or somebody else's by now
                os.kill(pid, signal.SIGKILL)


def _read_table() -> dict[int, tuple[int, str]]:
    """Read the parent and start time of every process; empty where there is no ``ps``."""
    try:
        said = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,lstart="], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return {}
    rows = [line.split(None, 2) for line in said.splitlines()]
    return {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3}


# Watchdog that ends the program after an interrupt even while Ray's compiled code waits, where
# Python's own handlers never run.


_LEAVES_S = 30.0
"""Seconds after which an interrupted program has ended by itself, also on a machine with several
times more to do than it has cores."""
_STOPS = bytes([signal.SIGINT, signal.SIGTERM])
"""Signals that interrupt the program."""
_SAID = "stopped; nothing was written (Ray did not answer, and was killed)\n"


@contextlib.contextmanager
def end_though_stuck(folder: Path | None) -> Iterator[None]:
    """Leave the context within :data:`_LEAVES_S` seconds after SIGINT or SIGTERM; otherwise kill
    what was started within, remove the folder, and end the process with status 130.

    Python runs a handler only between two of its own instructions. A thread of its own hears of
    every signal at once, from a socket that the C handler writes into. Only the main thread can ask
    for that; in any other the context does nothing.

    Args:
        folder: folder that Ray writes to; ``None`` where a cluster of the user's does the work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    others = find_started_by([os.getpid()])
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        until_s = math.inf
        try:
            while said := heard.recv(1):
                if before >= 0:  # an event loop's, which waits for its signals there
                    with contextlib.suppress(OSError):
                        os.write(before, said)
                if said in _STOPS:
                    until_s = min(until_s, time.monotonic() + _LEAVES_S)
                if until_s < math.inf:
                    heard.settimeout(max(until_s - time.monotonic(), 0.001))
        except TimeoutError:
            _end(find_started_by([os.getpid()]) - others, folder)

    watcher = threading.Thread(target=watch, name="hears signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()
        watcher.join()
        heard.close()


def _end(processes: set[Process], folder: Path | None) -> None:
    kill_left(processes)
    if folder is not None:
        remove(folder)
    sys.stderr.write(_SAID)
    sys.stderr.flush()
    os._exit(INTERRUPTED)
