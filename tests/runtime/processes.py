"""What a process started, what of it is left, and what others left lying around."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

NOWHERE = "127.0.0.1:1"


def running():
    """``(pid, parent, command)`` of every process that has not ended."""
    lines = subprocess.run(
        ["ps", "-axwwo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [(int(pid), int(parent), stat, *args) for pid, parent, stat, *args in (line.split(None, 3) for line in lines)]
    return [(pid, parent, " ".join(args)) for pid, parent, stat, *args in found if not stat.startswith("Z")]


def descendants(pid):
    """Processes that a process started, and those that they started, as ``(pid, command)``."""
    found, parents, table = set(), {pid}, running()
    while parents:
        children = {(own, args) for own, parent, args in table if parent in parents and not args.startswith("ps ")}
        found |= children
        parents = {own for own, _ in children}
    return found


def left_of(processes, wait_s=20.0):
    """Those that still run after a while; a process that is ending may need one."""
    pids, until_s = {pid for pid, _ in processes}, time.monotonic() + wait_s
    while True:
        left = {args for pid, _, args in running() if pid in pids}
        if not left or time.monotonic() > until_s:
            return left
        time.sleep(0.1)


@contextmanager
def stale_address():
    """An address file that a cluster left behind, and a variable that somebody forgot."""
    from ray._private.utils import get_ray_address_file

    path = Path(get_ray_address_file(None))
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NOWHERE)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", NOWHERE)
            yield path
            assert os.environ["RAY_ADDRESS"] == NOWHERE
            assert path.read_text() == NOWHERE
    finally:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(before)
