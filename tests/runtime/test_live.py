"""Deployments that change while they run for real: as the same policies have it that change a
simulated one, and with the outputs of the whole model before, between and behind.
"""

import itertools

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.engine.rebalancing import price_move
from simulator.policies.rebalancing.incremental import Incremental
from simulator.policies.rebalancing.periodic import Periodic
from simulator.runtime.job import Step
from simulator.runtime.live import LiveDeployment
from simulator.runtime.reference import Reference
from tests.parts import change_plan
from tests.runtime.equality import check_step, running

pytestmark = pytest.mark.usefixtures("one_thread")
MOE = {"num_experts": 8, "top_k": 2}
EVERY_STEP_S = 1e-3
"""Shorter than any step and move, so that policies are asked before every step but the first."""


def plan_of(real, num_layers=2, **keys):
    plan = real.plan(
        {**MOE, "num_layers": num_layers},
        attention_dp=4,
        ep=4,
        placement={"kind": "eplb", "num_slots": 12},
    )
    return change_plan(plan, **keys)


def steps(number, kind="decode", **keys):
    shape = (9, 1, 6) if kind == "decode" else (5, 3, 0)
    return [Step(own, *shape, 997 * own, **keys) for own in range(number)]


class Asked:
    """A rebalancing policy that keeps what it is told, and does what another one does."""

    def __init__(self, policy, looks=None):
        self.policy, self.loads, self._looks = policy, [], looks

    def looks(self):
        return self.policy.looks() if self._looks is None else iter(self._looks)

    def decide(self, load, rng):
        self.loads.append(load)
        return self.policy.decide(load, rng)

    def __getattr__(self, name):
        return getattr(self.policy, name)


POLICIES = {
    "all anew": Periodic(every_s=EVERY_STEP_S, least_gain=1e-6),
    "as few as needed": Incremental(every_s=EVERY_STEP_S, tolerance=1.0),
    "a layer at a time": Periodic(every_s=EVERY_STEP_S, least_gain=1e-6, layers_per_chunk=1),
}


@pytest.mark.parametrize("name", POLICIES)
def test_steps_between_which_experts_move_equal_the_whole_model(real, name):
    plan = plan_of(real, rebalancing=POLICIES[name])
    job = real.job(plan)
    reference = Reference(job)
    with running(job) as (backend, _):
        live = LiveDeployment(plan, job, backend)
        placements = []
        for step in steps(6, keeps_output=True) + steps(2, "prompt", keeps_output=True):
            ran = live.run(step, counts=True)
            check_step(ran.job, ran.step, ran.shards, reference)
            assert ran.job.experts.placed is ran.plan.placement.experts.placed
            placements.append(ran.job.experts.placed.expert_LP)
    moves = live.experts.moves
    assert len(moves) > 1
    assert {moved.step for moved in moves} <= set(range(1, 6)) | {0, 1}
    changes = sum((a != b).any() for a, b in itertools.pairwise(placements))
    parts = sum(moved.num_parts for moved in moves)
    assert changes in (parts, parts - 1)  # the last move may be under way
    assert all(moved.seconds > 0 and moved.num_bytes > 0 for moved in moves)
    assert all(moved.imbalance_after < moved.imbalance_before for moved in moves)
    assert all(moved.imbalance_next is not None for moved in moves[:-1])


@pytest.mark.parametrize("kind", ["decode", "prompt"])
def test_a_policy_is_told_every_token_that_was_routed_once(real, kind):
    asked = Asked(POLICIES["as few as needed"])
    plan = plan_of(real, rebalancing=asked)
    job = real.job(plan)
    own = steps(5, kind)
    with running(job) as (backend, _):
        live = LiveDeployment(plan, job, backend)
        for step in own:
            live.run(step, counts=True)
    assert [load.num_tokens for load in asked.loads] == [step.num_tokens for step in own[:-1]]
    for step, load in zip(own, asked.loads, strict=False):
        for layer in range(job.model.num_moe_layers):
            ids_TK = job.ids_TJ(layer, step.offset, step.num_tokens)
            assert np.array_equal(load.load_LE[layer], np.bincount(ids_TK.ravel(), minlength=8))


def test_a_move_is_priced_as_the_simulator_prices_it_and_carries_as_many_bytes(real):
    asked = Asked(POLICIES["as few as needed"], looks=[0.0])
    plan = plan_of(real, rebalancing=asked)
    job = real.job(plan)
    with running(job) as (backend, _):
        live = LiveDeployment(plan, job, backend)
        live.run(steps(1)[0], counts=False)
        live.experts.count(backend.step(steps(1)[0]))
        ran = live.run(steps(2)[1], counts=True)
    (load,), (moved,) = asked.loads, live.experts.moves
    priced = price_move(
        plan.placement,
        ran.plan.placement.experts.placed,
        load,
        "both",
        asked.policy.host_s_per_layer,
    )
    assert (moved.num_experts, moved.num_bytes) == (priced.num_experts, priced.num_bytes)
    assert moved.predicted_s == priced.seconds
    assert moved.imbalance_before == priced.imbalance_before
    assert moved.imbalance_after == priced.imbalance_after


def test_the_clock_stands_still_while_steps_warm_up_and_looks_of_one_step_are_one(real):
    asked = Asked(Incremental(), looks=[1e-9, 2e-9, 3e-9, 1e9])
    plan = plan_of(real, rebalancing=asked)
    job = real.job(plan)
    with running(job) as (backend, _):
        live = LiveDeployment(plan, job, backend)
        for step in steps(3):
            live.run(step, counts=False)
        assert live.clock_s == 0.0
        first, second = (live.run(step, counts=True) for step in steps(2))
    assert [load.at_s for load in asked.loads] == [3e-9]
    moved_s = sum(moved.seconds for moved in live.experts.moves)
    assert live.clock_s == pytest.approx(first.seconds + second.seconds + moved_s)


def test_the_first_step_of_each_kind_behind_a_move_keeps_its_output(real):
    plan = plan_of(real, rebalancing=Asked(POLICIES["as few as needed"], looks=[1e-9]))
    job = real.job(plan)
    own = [*steps(3), *steps(2, "prompt")]
    with running(job) as (backend, _):
        live = LiveDeployment(plan, job, backend)
        kept = [live.run(step, counts=True).step.keeps_output for step in own]
    assert len(live.experts.moves) == 1
    assert kept == [False, True, False, True, False]


def test_nothing_is_asked_of_deployments_that_do_not_rebalance(real):
    plan = real.plan(tp=2)
    job = real.job(plan)
    with running(job) as (backend, _):
        live = LiveDeployment(plan, job, backend)
        for step in steps(3):
            ran = live.run(step, counts=True)
        assert ran.plan is plan
        assert ran.job is job
        assert live.experts.moves == []


def test_moves_beside_steps_are_refused_with_what_to_leave_out(real):
    plan = plan_of(real, rebalancing=Incremental(asynchronous=True))
    with pytest.raises(UserError, match="leave asynchronous out of the rebalancing"):
        real.job(plan)
