"""Processes that outlive, for a while, the one that started them: Ray's agents look for their
raylet only now and then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable

Process = tuple[int, str]
"""A process by its id and the time of its start: ids are given again."""


def find_started_by(pids: Iterable[int]) -> set[Process]:
    """What processes started, and what those started."""
    table, found, parents = _read_table(), set[Process](), set(pids)
    while parents:
        children = {(pid, start) for pid, (parent, start) in table.items() if parent in parents}
        parents = {pid for pid, _ in children - found}
        found |= children
    return found


def kill_left(processes: set[Process]) -> None:
    """Kill those that still run."""
    table = _read_table() if processes else {}
    for pid, start in processes:
        if pid in table and table[pid][1] == start:
            with contextlib.suppress(OSError):  # gone, or somebody else's by now
                os.kill(pid, signal.SIGKILL)


def _read_table() -> dict[int, tuple[int, str]]:
    """Parent and time of start of every process; empty where there is no ``ps``."""
    try:
        said = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,lstart="], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return {}
    rows = [line.split(None, 2) for line in said.splitlines()]
    return {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3}
