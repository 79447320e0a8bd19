"""Deployments that change while they run on Ray actors: experts move between processes, and ranks
are killed for real and go on, or come back, as threads do.
"""

import dataclasses
import os
import signal
import time

import numpy as np
import pytest

from simulator.policies.failures.kill import Kill
from simulator.policies.placement import Placed
from simulator.policies.recovery.elastic import Elastic
from simulator.policies.recovery.restart import Restart
from simulator.runtime.live import LiveDeployment
from simulator.runtime.reference import Reference
from tests.parts import change_plan
from tests.runtime.equality import STEPS, check, check_step, decode, prompts, running
from tests.runtime.processes import PATIENCE_S
from tests.runtime.ray_nodes import (
    EACH,
    NUM_NODES,
    is_alive,
    new_faults,
    processes,
    start,
)

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="class", params=EACH)
def backend(request, nodes, job):
    running = start(nodes, job, request.param)
    yield running
    running.close()


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


class TestEachTransport:
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
