"""What a process started, what of it is left, and what others left lying around."""

import ipaddress
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.importorskip("ray", reason="needs pip install 'moesim[real]'")

from ray._private.utils import get_ray_address_file

NOWHERE = "127.0.0.1:1"
PATIENCE_S = 300.0
"""Whatever ends at all has ended by then, however busy the machine is; only a test that fails waits
so long."""


def start_moesim(folder, *arguments, **options):
    """The command in a folder; it heeds Ctrl-C, which what a test runner's workers start ignores
    unless it is told otherwise.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "simulator", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def running():
    """``(pid, parent, command)`` of every process that has not ended."""
    lines = subprocess.run(
        ["ps", "-axwwo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [
        (int(pid), int(parent), stat, *args)
        for pid, parent, stat, *args in (line.split(None, 3) for line in lines)
    ]
    return [
        (pid, parent, " ".join(args))
        for pid, parent, stat, *args in found
        if not stat.startswith("Z")
    ]


def descendants(pid):
    """Processes that a process started, and those that they started, as ``(pid, command)``."""
    found, parents, table = set(), {pid}, running()
    while parents:
        children = {
            (own, args)
            for own, parent, args in table
            if parent in parents and not args.startswith("ps ")
        }
        found |= children
        parents = {own for own, _ in children}
    return found


def open_addresses(pids):
    """Addresses that processes listen at, without their ports."""
    found = set()
    sockets = {
        os.readlink(entry)
        for pid in pids
        for entry in (Path(f"/proc/{pid}/fd").iterdir() if Path(f"/proc/{pid}/fd").exists() else ())
        if entry.is_symlink()
    }
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            own, state, inode = (line.split()[place] for place in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in sockets:
                words = bytes.fromhex(own.partition(":")[0])
                parts = [words[at : at + 4][::-1] for at in range(0, len(words), 4)]
                found.add(ipaddress.ip_address(b"".join(parts)))
    return found


def is_loopback(address):
    """Whether other machines cannot reach an address; one of IPv4 may stand in one of IPv6."""
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def left_of(processes, wait_s=PATIENCE_S):
    """Those that still run after a while; a process that is ending may need one."""
    pids, until_s = {pid for pid, _ in processes}, time.monotonic() + wait_s
    while True:
        left = {args for pid, _, args in running() if pid in pids}
        if not left or time.monotonic() > until_s:
            return left
        time.sleep(0.1)


@contextmanager
def common_folder():
    """A folder that Ray takes for the one that all programs of the machine share; short, since
    sockets' paths must be.
    """
    with (
        TemporaryDirectory(prefix="m-", dir="/tmp", ignore_cleanup_errors=True) as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", place)
        yield Path(place) / "ray"


@contextmanager
def stale_address():
    """Ray's common folder with an address that a cluster left behind, and a variable that somebody
    forgot; both stay as they are.
    """
    with common_folder() as common, pytest.MonkeyPatch.context() as patch:
        common.mkdir()
        path = Path(get_ray_address_file(None))
        path.write_text(NOWHERE)
        patch.setenv("RAY_ADDRESS", NOWHERE)
        assert common in path.parents
        yield common
        assert os.environ["RAY_ADDRESS"] == NOWHERE
        assert is_untouched(common)
        assert os.listdir(common.parent) == [
            common.name
        ]  # what lay beside it, for a while, was ours


def is_untouched(common):
    """Whether a common folder holds a stale address and nothing else."""
    return {path.name: path.read_text() for path in common.iterdir()} == {
        "ray_current_cluster": NOWHERE
    }


@contextmanager
def cluster_by_hand(*options):
    """A cluster as an administrator starts it, in Ray's common folder; its address and the process
    that keeps it.
    """
    path, began_s = Path(get_ray_address_file(None)), time.monotonic()
    assert not path.exists()
    command = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--include-dashboard=false",
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        while not path.exists():
            assert command.poll() is None
            assert time.monotonic() < began_s + PATIENCE_S
            time.sleep(0.2)
        yield path.read_text(), command
    finally:
        started = descendants(command.pid)
        command.terminate()
        command.wait(timeout=PATIENCE_S)
        assert left_of(started) == set()
