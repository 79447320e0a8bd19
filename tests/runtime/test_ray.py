"""Shards on Ray actors on four simulated nodes: they equal the whole model, also after processes
and nodes are killed for real.
"""

# ruff: noqa: E402 (what follows needs torch and ray, and is skipped without)

import dataclasses
import os
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs pip install 'moesim[real]'")
ray = pytest.importorskip("ray", reason="needs pip install 'moesim[real]'")

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.config.execution import ExecutionSpec, FaultSpec
from simulator.policies.failures.kill import Kill
from simulator.policies.placement import Placed
from simulator.policies.recovery.elastic import Elastic
from simulator.policies.recovery.restart import Restart
from simulator.runtime.live import LiveDeployment
from simulator.runtime.nodes import connect
from simulator.runtime.ray_backend import RayBackend
from simulator.runtime.reference import Reference
from tests.parts import change_plan
from tests.runtime import contract
from tests.runtime.equality import (
    STEPS,
    by_its_router,
    check,
    check_step,
    decode,
    prompts,
    replicated,
    running,
    with_noise,
    with_placed,
)
from tests.runtime.processes import PATIENCE_S, descendants, is_untouched, left_of, stale_address

# One worker runs them all, or each would start a cluster of its own.
pytestmark = pytest.mark.xdist_group("ray")

ray.cloudpickle.register_pickle_by_value(contract)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

NUM_NODES = 4
TRANSPORTS = [kind for kind in plugins.available("runtime.transport") if kind != "in_process"]
TIMEOUT_S = 5.0
"""Much longer than any exchange takes; a rank that hangs costs this."""
PLANNED, TWICE = 20, 30
"""Steps in which something is killed."""


def of_ray(processes):
    """Those of a cluster: other tests of the same worker start browsers."""
    return {(pid, args) for pid, args in processes if "ray" in args}


@pytest.fixture(scope="module")
def nodes():
    before = descendants(os.getpid())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 2)  # of a simulated node, whatever machine runs this
        with stale_address() as common, connect(simulated_nodes=NUM_NODES) as found:
            assert is_untouched(common)  # other programs' way to their own cluster
            started = of_ray(descendants(os.getpid()) - before)
            yield found
            started |= of_ray(descendants(os.getpid()) - before)
    assert left_of(started) == set()  # though processes and a node were killed in between


@pytest.fixture(scope="module")
def job(real, tiny):
    """Experts with copies on four nodes of one rank each."""
    plan = real.plan(
        {"num_experts": 8, "top_k": 2, "has_expert_bias": True},
        attention_dp=4,
        ep=4,
        dispatch={"kind": "per_rank"},
    )
    plan = tiny.on(plan, cluster=tiny.cluster(NUM_NODES, 1))
    plan = with_placed(
        plan, replicated(plan.placement.experts.placed, 8, 3, np.random.default_rng(0))
    )
    return with_noise(real.job(plan), real.folder)


@pytest.fixture(scope="module")
def reference(job):
    return Reference(job)


def start(nodes, job, transport, faults=(), timeout_s=TIMEOUT_S):
    execution = ExecutionSpec(transport={"kind": transport}, timeout_s=timeout_s, faults=faults)
    backend = RayBackend(nodes, job.node_R, execution)
    backend.load(job)
    return backend


@pytest.fixture(scope="class", params=TRANSPORTS)
def backend(request, nodes, job):
    faults = (
        FaultSpec(step=PLANNED, rank=1),
        FaultSpec(step=TWICE, rank=2),
        FaultSpec(step=TWICE, rank=0, during_recovery=True),
    )
    running = start(nodes, job, request.param, faults)
    yield running
    running.close()


def processes(backend):
    """Process of each rank."""
    return [
        pid for pid, _ in ray.get([actor.process.remote() for actor in backend.actors.values()])
    ]


def homes(backend):
    """Node that each rank is on."""
    return ray.get(
        [
            actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            for actor in backend.actors.values()
        ]
    )


def new_faults(backend, known):
    """Faults that were noted since, all of them recovered from."""
    found = backend.faults[known:]
    assert all(fault.recovery_s > 0 and fault.deployment == "tiny" for fault in found)
    return found


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestEachTransport:
    def test_experts_on_four_nodes_equal_the_whole_model(self, backend, job, reference):
        check(job, backend, reference)
        assert backend.faults == []

    def test_the_routers_own_choice_equals_the_whole_model(self, backend, job):
        chosen_by_router = by_its_router(job)
        backend.load(chosen_by_router)
        check(chosen_by_router, backend, Reference(chosen_by_router), STEPS[:2])
        backend.load(job)

    def test_experts_that_have_moved_equal_the_whole_model_and_threads_bit_for_bit(
        self, backend, job, reference
    ):
        placed, rng = job.experts.placed, np.random.default_rng(2)
        known = len(backend.faults)
        for number in range(2):
            order = rng.permutation(placed.expert_LP.shape[1])
            placed = Placed(placed.expert_LP[:, order], placed.rank_LP, placed.num_ranks)
            got = backend.place_experts(placed, number)
            with_moved = dataclasses.replace(
                job, experts=dataclasses.replace(job.experts, placed=placed)
            )
            check(with_moved, backend, reference, STEPS[:2])
            with running(with_moved) as (threads, _):
                for one, other in zip(backend.step(decode()), threads.step(decode()), strict=True):
                    assert np.array_equal(one.hidden_TH, other.hidden_TH)
                    assert np.array_equal(one.load_LE, other.load_LE)
            assert sum(one.num_bytes for one in got) > 0
        backend.place_experts(job.experts.placed, 2)
        check(job, backend, reference, STEPS[:1])
        assert len(backend.faults) == known

    def test_a_rank_killed_while_experts_move_is_replaced_and_they_lie_where_they_shall(
        self, backend, job, reference
    ):
        known = len(backend.faults)
        placed = job.experts.placed
        other = Placed(placed.expert_LP[:, ::-1].copy(), placed.rank_LP, placed.num_ranks)
        with_moved = dataclasses.replace(
            job, experts=dataclasses.replace(job.experts, placed=other)
        )
        backend.kill(1)
        backend.place_experts(other, 50)
        (fault,) = new_faults(backend, known)
        assert fault.ranks == [1]
        check(with_moved, backend, reference, STEPS[:2])
        backend.load(job)

    def test_every_rank_is_on_the_node_that_the_plan_says(self, backend, job):
        number_of = {
            node["NodeID"]: int(mark.rpartition("_")[2])
            for node in ray.nodes()
            for mark in node["Resources"]
            if mark.startswith("moesim_node_")
        }
        assert [number_of[node] for node in homes(backend)] == job.node_R.tolist() == [0, 1, 2, 3]

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

    def test_a_second_rank_killed_during_the_recovery_is_replaced_too(
        self, backend, job, reference
    ):
        known = len(backend.faults)
        step = decode(TWICE)
        check_step(job, step, backend.step(step), reference)
        found = new_faults(backend, known)
        assert [fault.step for fault in found] == [TWICE, TWICE]
        assert found[0].ranks == [2]
        assert 0 in found[1].ranks

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

    def test_the_ranks_that_are_left_go_on_as_threads_do_until_the_lost_one_has_joined_again(
        self, backend, real, tiny
    ):
        plan = losing(real, tiny, Elastic(requests="lose"))
        job, step = real.job(plan), decode()
        reference = Reference(job)
        backend.load(job)
        known, before = len(backend.faults), processes(backend)
        live = LiveDeployment(plan, job, backend)
        ran = live.run(step, counts=True)
        check_step(ran.job, step, ran.shards, reference)
        assert list(ran.members) == [0, 2, 3]
        assert processes(backend) == [before[rank] for rank in (0, 2, 3)]
        assert not is_alive(before[1])
        with running(job) as (threads, _):
            other = LiveDeployment(plan, job, threads).run(step, counts=True)
        for one, two in zip(ran.shards, other.shards, strict=True):
            assert np.array_equal(one.hidden_TH, two.hidden_TH)
        until_s = time.monotonic() + PATIENCE_S
        while len(backend.members) < 4 and time.monotonic() < until_s:
            time.sleep(0.1)
            ran = live.run(prompts(), counts=True)
            check_step(ran.job, prompts(), ran.shards, reference)
        assert [change.kind for change in live.ranks.changed] == ["hangs", "shrinks", "grows"]
        assert list(ran.members) == [0, 1, 2, 3]
        assert [processes(backend)[rank] for rank in (0, 2, 3)] == [
            before[rank] for rank in (0, 2, 3)
        ]
        check(job, backend, reference, STEPS[:2])
        assert len(backend.faults) == known  # what was planned is no fault

    def test_all_processes_are_new_behind_a_restart(self, backend, real, tiny):
        plan = losing(real, tiny, Restart())
        job = real.job(plan)
        reference = Reference(job)
        backend.load(job)
        before = processes(backend)
        live = LiveDeployment(plan, job, backend)
        ran = live.run(decode(), counts=True)
        check_step(ran.job, decode(), ran.shards, reference)
        assert [change.kind for change in live.ranks.changed] == ["hangs", "stops", "starts"]
        assert not set(processes(backend)) & set(before)
        assert not any(map(is_alive, before))
        check(job, backend, reference, STEPS[:2])

    def test_a_rank_killed_from_outside_while_others_form_a_new_group_is_replaced(
        self, backend, real, tiny
    ):
        plan = losing(real, tiny, Elastic())
        job = real.job(plan)
        reference = Reference(job)
        backend.load(job)
        known, victim = len(backend.faults), processes(backend)[3]
        live, regroup = LiveDeployment(plan, job, backend), backend.regroup

        def regroup_and_lose(*arguments, **keys):
            os.kill(victim, signal.SIGKILL)
            return regroup(*arguments, **keys)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "regroup", regroup_and_lose)
            ran = live.run(decode(), counts=True)
        check_step(ran.job, decode(), ran.shards, reference)
        assert list(ran.members) == [0, 2, 3]
        (fault,) = new_faults(backend, known)
        assert fault.ranks == [3]
        assert victim not in processes(backend)


def losing(real, tiny, recovery):
    """Four nodes of one rank each, the second of which fails at once and works again at once."""
    plan = real.plan(
        {"num_experts": 8, "top_k": 2},
        attention_dp=4,
        ep=4,
        dispatch={"kind": "per_rank"},
        placement={"kind": "eplb", "num_slots": 12},
    )
    plan = tiny.on(plan, cluster=tiny.cluster(NUM_NODES, 1))
    return change_plan(plan, failures=(Kill(at_s=0.0, gpu=1, restart_s=0.0),), recovery=recovery)


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
        meeting = contract.policy(transport).meeting(3, PATIENCE_S)
        asked = [
            p.keep.remote(transport, meeting.address, r, 3, PATIENCE_S) for r, p in enumerate(peers)
        ]
        contract.check_all(ray.get(asked, timeout=PATIENCE_S))
        alone = contract.policy(transport).meeting(2, 1.0)
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
