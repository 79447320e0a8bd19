"""Processes that outlive, for a while, the one that started them: Ray's agents check for their
raylet only from time to time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

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
