"""Shards on Ray actors on four simulated nodes: they equal the whole model, also after processes
and nodes are killed for real.
"""

import dataclasses
import os
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest
import ray

from simulator.base.errors import UserError
from simulator.config.execution import ExecutionSpec, FaultSpec
from simulator.runtime.ray_backend import RayBackend
from simulator.runtime.reference import Reference
from tests.runtime import contract
from tests.runtime.equality import (
    STEPS,
    by_its_router,
    check,
    check_step,
    decode,
    prompts,
)
from tests.runtime.processes import PATIENCE_S, descendants, is_loopback, open_addresses
from tests.runtime.ray_nodes import (
    EACH,
    NUM_NODES,
    TRANSPORTS,
    homes,
    is_alive,
    new_faults,
    processes,
    start,
)

# One worker runs them all, or each would start a cluster of its own.
pytestmark = pytest.mark.xdist_group("ray")

ray.cloudpickle.register_pickle_by_value(contract)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PLANNED, LATE, TWICE = 20, 25, 30
"""Steps in which something is killed."""


@pytest.fixture(scope="class", params=EACH)
def backend(request, nodes, job):
    faults = (
        FaultSpec(step=PLANNED, rank=1),
        FaultSpec(step=LATE, rank=1),
        FaultSpec(step=TWICE, rank=2),
        FaultSpec(step=TWICE, rank=0, during_recovery=True),
    )
    running = start(nodes, job, request.param, faults)
    yield running
    running.close()


class TestEachTransport:
    def test_experts_on_four_nodes_equal_the_whole_model(self, backend, job, reference):
        check(job, backend, reference)
        assert backend.faults == []

    def test_the_routers_own_choice_equals_the_whole_model(self, backend, job):
        chosen_by_router = by_its_router(job)
        backend.load(chosen_by_router)
        check(chosen_by_router, backend, Reference(chosen_by_router), STEPS[:2])
        backend.load(job)

    def test_every_rank_is_on_the_node_that_the_plan_says(self, backend, job):
        number_of = {
            node["NodeID"]: int(mark.rpartition("_")[2])
            for node in ray.nodes()
            for mark in node["Resources"]
            if mark.startswith("moesim_node_")
        }
        assert [number_of[node] for node in homes(backend)] == job.node_R.tolist() == [0, 1, 2, 3]

    def test_no_other_machine_reaches_a_port_of_theirs(self, backend, job):
        pids = [os.getpid(), *processes(backend)]
        assert all(open_addresses([pid]) for pid in pids)
        of_ray = [pid for pid, args in descendants(os.getpid()) if "ray" in args]
        assert all(map(is_loopback, open_addresses([*pids, *of_ray])))

    def test_a_rank_killed_as_planned_is_replaced_and_the_step_repeated(
        self, backend, job, reference
    ):
        # How long such a step takes is known: a rank that waits for one that gave up says so itself
        # before it would be taken for hung.
        backend.step(prompts(PLANNED - 1))
        known, before = len(backend.faults), processes(backend)
        step = prompts(PLANNED)
        check_step(job, step, backend.step(step), reference)
        (fault,) = new_faults(backend, known)
        assert (fault.step, fault.ranks, fault.what) == (PLANNED, [1], "rank 1 died")
        assert [pid for pid in processes(backend) if pid not in before] == [processes(backend)[1]]
        assert homes(backend)[1] in backend.nodes.alive
        check(job, backend, reference, [decode(PLANNED + 1)])
        assert len(backend.faults) == known + 1

    def test_a_rank_that_answered_before_it_was_killed_is_lost_in_that_step_all_the_same(
        self, backend, job, reference, monkeypatch
    ):
        known, kill = len(backend.faults), backend.kill
        monkeypatch.setattr(backend, "kill", lambda rank: (time.sleep(1.0), kill(rank)))
        step = prompts(LATE)
        check_step(job, step, backend.step(step), reference)
        (fault,) = new_faults(backend, known)
        assert (fault.step, fault.ranks, fault.what) == (LATE, [1], "rank 1 died")
        check(job, backend, reference, [decode(LATE + 1)])
        assert len(backend.faults) == known + 1

    def test_a_second_rank_killed_during_the_recovery_is_replaced_too(
        self, backend, job, reference
    ):
        known = len(backend.faults)
        step = decode(TWICE)
        check_step(job, step, backend.step(step), reference)
        found = new_faults(backend, known)
        assert [fault.step for fault in found] == [TWICE, TWICE]
        assert [fault.ranks for fault in found] == [[2], [0]]

    def test_a_rank_killed_from_outside_in_the_middle_of_a_step_is_replaced(
        self, backend, job, reference
    ):
        known, victim = len(backend.faults), processes(backend)[3]
        step = prompts(40, sequences=16, tokens=256)
        backend.step(step)
        began_s = time.perf_counter()
        backend.step(step)
        killer = threading.Timer(
            (time.perf_counter() - began_s) / 2, os.kill, (victim, signal.SIGKILL)
        )
        killer.start()
        check_step(job, step, backend.step(step), reference)
        killer.join()
        check(job, backend, reference, [decode(41)])
        (fault,) = new_faults(backend, known)
        assert fault.ranks == [3]
        assert fault.what == "rank 3 died"
        assert victim not in processes(backend)

    def test_a_rank_that_hangs_is_named_and_replaced(self, backend, job, reference):
        if backend._transport["kind"] != "process_group":
            pytest.skip("what finds it does not depend on the transport, and takes its time")
        known, victim = len(backend.faults), processes(backend)[2]
        os.kill(victim, signal.SIGSTOP)
        check(job, backend, reference, [decode(60), prompts(61)])
        (fault,) = new_faults(backend, known)
        assert (fault.step, fault.ranks) == (60, [2])
        assert re.search(r"rank 2 did not answer for \d+(\.\d+)? s", fault.what)
        until_s = time.monotonic() + PATIENCE_S
        while is_alive(victim) and time.monotonic() < until_s:
            time.sleep(0.1)
        assert not is_alive(victim)


def test_a_rank_that_takes_longer_than_was_asked_for_is_no_hung_one(nodes, job, reference):
    """A busy machine: each of its steps takes twice the time that ranks may always wait."""
    backend = start(nodes, job, "process_group", timeout_s=0.5)
    try:
        backend.actors[1].apply.remote(slow_down, 1.0)
        check(job, backend, reference)
        assert backend.faults == []
        os.kill(processes(backend)[1], signal.SIGSTOP)  # and one that is hung still is
        check(job, backend, reference, [decode(60)])
        (fault,) = new_faults(backend, 0)
        assert fault.ranks == [1]
    finally:
        backend.close()


def slow_down(shard, seconds):
    """Let a rank come late to the first exchange of every step."""
    barrier = shard.transport.barrier
    shard.transport.barrier = lambda: (time.sleep(seconds), barrier())


def test_more_nodes_than_there_are_is_an_error_that_says_what_to_do(nodes):
    with pytest.raises(UserError, match=f"5 nodes.*has {NUM_NODES}.*--simulated-nodes 5"):
        RayBackend(nodes, np.arange(5), ExecutionSpec())


class Peer:
    def keep(self, *arguments):
        return contract.keep(*arguments)

    def wait_alone(self, *arguments):
        return contract.wait_alone(*arguments)


def test_transports_between_processes_keep_the_contract(nodes):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    peers = [ray.remote(Peer).options(num_cpus=0).remote() for _ in range(3)]
    for transport in TRANSPORTS:
        meeting = contract.policy(transport).meeting(3, PATIENCE_S, "127.0.0.1")
        asked = [
            p.keep.remote(transport, meeting.address, r, 3, PATIENCE_S) for r, p in enumerate(peers)
        ]
        contract.check_all(ray.get(asked, timeout=PATIENCE_S))
        alone = contract.policy(transport).meeting(2, 1.0, "127.0.0.1")
        waited_s = ray.get(
            peers[0].wait_alone.remote(transport, alone.address, 2, 1.0), timeout=PATIENCE_S
        )
        assert 0.5 < waited_s < 60
        alone.abort()
    for peer in peers:
        ray.kill(peer)


def test_ranks_of_a_killed_node_go_on_elsewhere_though_they_were_more_than_its_cores(nodes, real):
    job = real.job(
        real.plan(
            {"num_experts": 8, "top_k": 2}, attention_dp=5, ep=5, dispatch={"kind": "per_rank"}
        )
    )
    job = dataclasses.replace(job, node_R=np.array([1, 2, 3, 3, 3]))  # three on two cores
    reference = Reference(job)
    backend = start(nodes, job, "process_group", (FaultSpec(step=PLANNED, node=3),))
    try:
        check(job, backend, reference)
        assert backend.ranks_per_machine == [5] * 5
        before = homes(backend)
        assert before[2] == before[3] == before[4]
        assert len(set(before)) == 3
        step = prompts(PLANNED)
        check_step(job, step, backend.step(step), reference)
        (fault,) = new_faults(backend, 0)
        assert (fault.step, fault.ranks) == (PLANNED, [2, 3, 4])
        assert fault.what == "; ".join(f"rank {rank} died with its node" for rank in fault.ranks)
        assert before[2] not in nodes.alive
        assert homes(backend)[:2] == before[:2]
        assert set(homes(backend)) <= set(nodes.alive)
        check(job, backend, reference, [decode(PLANNED + 1)])
        assert len(backend.faults) == 1
    finally:
        backend.close()
