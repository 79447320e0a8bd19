"""Clusters that are started here end here, with all their processes; clusters of others are joined
and left as they were.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import ray

from simulator.base.errors import UserError
from simulator.parallel.workers import Workers
from simulator.runtime.nodes import connect
from simulator.runtime.ray_files import isolate_ray_files
from tests.runtime.processes import (
    NOWHERE,
    PATIENCE_S,
    cluster_by_hand,
    common_folder,
    descendants,
    is_loopback,
    is_untouched,
    left_of,
    open_addresses,
    stale_address,
)

pytestmark = pytest.mark.xdist_group("ray-apart")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a cluster has no tests


@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize("simulated_nodes", [None, 1])
def test_what_is_started_is_found_whatever_addresses_lie_around_and_is_all_gone_afterwards(
    simulated_nodes,
):
    before, started, folders, addresses = descendants(os.getpid()), set(), [], set()

    def fail():
        with stale_address() as common, connect(simulated_nodes) as nodes:
            assert is_untouched(common)  # other programs' way to their own cluster
            folders.append(Path(os.environ["RAY_TMPDIR"]))
            assert folders[0].parent == common.parent
            assert len(list(folders[0].glob("ray/session_2*/sockets/raylet*"))) == 1 + (
                simulated_nodes or 0
            )
            assert len(nodes.alive) == 1
            assert ray.get(where.remote(), timeout=PATIENCE_S) in nodes.alive
            started.update(descendants(os.getpid()) - before)
            addresses.update(open_addresses([os.getpid(), *(pid for pid, _ in started)]))
            raise ZeroDivisionError  # as anything inside may

    with pytest.raises(ZeroDivisionError):
        fail()
    names = " ".join(args for _, args in started)
    assert "gcs_server" in names
    assert "raylet" in names
    assert addresses
    assert all(map(is_loopback, addresses))  # no other machine reaches any port
    assert not ray.is_initialized()
    assert left_of(started) == set()
    assert not folders[0].exists()


def test_no_token_is_left_in_the_home_folder(tmp_path):
    """``ray start`` would ask for it from then on."""
    code = "from simulator.runtime.nodes import connect\nwith connect(cores=1): pass"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert list(tmp_path.iterdir()) == []


def test_where_sockets_would_have_too_long_a_path_another_folder_is_taken(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with isolate_ray_files() as folder:
        assert long not in folder.parents
        assert folder.is_dir()
    assert not folder.exists()
    assert os.environ["RAY_TMPDIR"] == str(long)


def test_a_cluster_that_somebody_started_is_joined_and_goes_on_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "RAY_AUTH_TOKEN", secrets.token_hex(16)
    )  # where there is one, `ray start` asks for it
    candidates = (
        "--port=0",
        "--num-cpus=2",
        "--min-worker-port=0",
        "--max-worker-port=0",
    )  # other clusters may have the usual ports
    with common_folder() as common, cluster_by_hand(*candidates) as (address, command):
        files = {path.name for path in common.iterdir()}
        processes = {
            pid
            for pid, args in descendants(command.pid)
            if "gcs_server" in args or "raylet/raylet" in args
        }
        for _ in range(2):
            with connect(address=address) as nodes:
                assert list(nodes.alive.values()) == [2.0]
                assert ray.get(where.remote(), timeout=PATIENCE_S) in nodes.alive
                with pytest.raises(UserError, match="simulated-nodes"):
                    nodes.kill(0)
            assert command.poll() is None
            assert processes <= {pid for pid, _ in descendants(command.pid)}
        # One worker a CPU, this process included.
        with Workers(address=address) as pool:
            assert {pid for _, pid in pool.map(partial(both_at_work, tmp_path), range(3))} > {
                os.getpid()
            }
        with (
            pytest.raises(UserError, match="nobody works here"),
            Workers(address=address, ready=refuse) as pool,
        ):
            pool.map(time.sleep, [0.05] * 2000)
        assert (common / "ray_current_cluster").read_text() == address
        assert {path.name for path in common.iterdir()} == files
        assert os.listdir(common.parent) == [common.name]
        assert processes <= {pid for pid, _ in descendants(command.pid)}


def test_a_search_goes_on_alone_where_the_head_of_its_cluster_is_lost(tmp_path):
    candidates = ("--port=0", "--num-cpus=2", "--min-worker-port=0", "--max-worker-port=0")
    with common_folder(), cluster_by_hand(*candidates) as (address, command):

        def kill_the_head(_):
            for pid, args in descendants(command.pid):
                if "gcs_server" in args or "raylet/raylet" in args:
                    os.kill(pid, signal.SIGKILL)

        def work_on():
            with Workers(address=address) as pool:
                found = pool.map(partial(both_at_work, tmp_path), range(4), kill_the_head)
                pool.map(time.sleep, [0.1] * 50)
            return [number for number, _ in found]

        with pytest.warns(RuntimeWarning, match=f"Ray was lost, .* at {address} does not answer"):
            assert work_on() == [0, 1, 2, 3]
        with pytest.raises(UserError, match=address), connect(address=address):
            pass


def refuse():
    raise UserError("nobody works here")


def both_at_work(folder, number):
    (folder / str(os.getpid())).touch()
    until_s = time.monotonic() + PATIENCE_S
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    return number, os.getpid()


@pytest.mark.parametrize(
    "address", [NOWHERE, "no.such.host.invalid:6379", "nonsense", "ray://127.0.0.1:1"]
)
def test_an_address_where_no_cluster_is_is_an_error_within_seconds(address):
    began_s = time.monotonic()
    with pytest.raises(UserError, match=address), connect(address=address):
        pass
    assert time.monotonic() - began_s < 15
    assert not ray.is_initialized()
