"""Clusters that are started here end here, with all their processes; clusters of others are joined and left as they were."""

# ruff: noqa: E402 (what follows needs ray, and is skipped without)

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from simulator.errors import UserError
from simulator.planner.plan import _ready
from simulator.planner.store import program
from simulator.runtime.nodes import connect
from simulator.sweep import Workers
from tests.runtime.processes import NOWHERE, descendants, left_of, stale_address

pytestmark = pytest.mark.xdist_group("ray")


@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()


def test_what_is_started_is_found_whatever_addresses_lie_around_and_is_all_stopped_again():
    before, started = descendants(os.getpid()), set()

    def fail():
        with stale_address() as path, connect() as nodes:
            assert path.read_text() == NOWHERE  # other programs' way to their own cluster
            assert len(nodes.alive) == 1
            assert ray.get(where.remote(), timeout=60) in nodes.alive
            started.update(descendants(os.getpid()) - before)
            raise ZeroDivisionError  # as anything inside may

    with pytest.raises(ZeroDivisionError):
        fail()
    names = " ".join(args for _, args in started)
    assert "gcs_server" in names
    assert "raylet" in names
    assert not ray.is_initialized()
    assert left_of(started) == set()


def test_a_command_that_is_told_to_stop_leaves_no_process_behind():
    code = """
import time
from simulator.runtime.nodes import connect
with connect(2) as nodes:
    print("ready", flush=True)
    time.sleep(100)
"""
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert command.stdout.readline() == "ready\n"
        started = descendants(command.pid)
        assert any("raylet" in args for _, args in started)
        command.terminate()
        assert command.wait(timeout=30) != 0
        assert left_of(started) == set()
    finally:
        command.kill()
        command.stdout.close()
        command.wait()


@contextmanager
def cluster_by_hand():
    """A cluster as an administrator starts it; its address and its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="moesim-", ignore_cleanup_errors=True) as folder:
        options = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}}
        command = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", "start", *options], **quiet)
        try:
            until_s = time.monotonic() + 60
            while not any("raylet/raylet" in args for _, args in descendants(command.pid)):
                assert command.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", command
        finally:
            started = descendants(command.pid)
            command.terminate()
            command.wait(timeout=30)
            assert left_of(started) == set()


def test_a_cluster_that_somebody_started_is_joined_and_goes_on_afterwards(tmp_path):
    with cluster_by_hand() as (address, command):
        processes = {pid for pid, args in descendants(command.pid) if "gcs_server" in args or "raylet/raylet" in args}
        for _ in range(2):
            with connect(address=address) as nodes:
                assert list(nodes.alive.values()) == [2.0]
                assert ray.get(where.remote(), timeout=60) in nodes.alive
                with pytest.raises(UserError, match="simulated-nodes"):
                    nodes.kill(0)
            assert command.poll() is None
            assert processes <= {pid for pid, _ in descendants(command.pid)}
        # What a plan does on its nodes, of which one worker a CPU is made, this process included.
        here = (program(), str(Path.cwd()), str(Path.cwd()), None)
        with Workers(address=address, ready=partial(_ready, here)) as crew:
            assert {pid for _, pid in crew.map(partial(both_at_work, tmp_path), range(3))} > {os.getpid()}
        with (
            pytest.raises(UserError, match="another version of moesim"),
            Workers(address=address, ready=partial(_ready, ("another", *here[1:]))) as crew,
        ):
            crew.map(time.sleep, [0.05] * 2000)
        assert processes <= {pid for pid, _ in descendants(command.pid)}


def both_at_work(folder, number):
    (folder / str(os.getpid())).touch()
    until_s = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    return number, os.getpid()


@pytest.mark.parametrize("address", [NOWHERE, "no.such.host.invalid:6379", "nonsense", "ray://127.0.0.1:1"])
def test_an_address_where_no_cluster_is_is_an_error_within_seconds(address):
    began_s = time.monotonic()
    with pytest.raises(UserError, match=address), connect(address=address):
        pass
    assert time.monotonic() - began_s < 15
    assert not ray.is_initialized()
