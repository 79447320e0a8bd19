"""Ranks that are lost while a deployment runs for real: those that are left go on with the experts
they have copies of, or all start anew; outputs equal the whole model before, during and behind it.
"""

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.policies.failures.kill import Kill
from simulator.policies.rebalancing.periodic import Periodic
from simulator.policies.recovery.elastic import Elastic
from simulator.policies.recovery.restart import Restart
from simulator.runtime.job import Step
from simulator.runtime.live import LiveDeployment
from simulator.runtime.reference import Reference
from tests.cases import seeds
from tests.parts import change_plan
from tests.runtime.equality import check_step, running, with_noise

pytestmark = pytest.mark.usefixtures("one_thread")
MOE = {"num_experts": 8, "top_k": 2, "has_expert_bias": True}
ELASTIC = Elastic(detection_s=0.0, regroup_s=0.25, startup_s=0.0)


def plan_of(real, *failures, recovery=ELASTIC, num_slots=16, **keys):
    plan = real.plan(
        MOE, attention_dp=4, ep=4, placement={"kind": "eplb", "num_slots": num_slots}, **keys
    )
    return change_plan(plan, failures=failures, recovery=recovery)


def steps(number, **keys):
    """Prompts and decodes in turn, of more sequences than ranks and of fewer."""
    shapes = ((9, 1, 6), (5, 3, 0), (2, 1, 4))
    return [Step(own, *shapes[own % 3], 997 * own, **keys) for own in range(number)]


def run_all(real, plan, number=6, clock=()):
    """Run steps, each of which equals the whole model, the first of them at given times. Returns
    them, and the deployment.
    """
    job = with_noise(real.job(plan), real.folder)
    reference = Reference(job)
    with running(job) as (backend, _):
        live, ran = LiveDeployment(plan, job, backend), []
        for step in steps(number, keeps_output=True):
            if step.number < len(clock):
                live.clock_s = clock[step.number]
            ran.append(live.run(step, counts=True))
            check_step(ran[-1].job, step, ran[-1].shards, reference)
        check_models(backend)
    return ran, live


def check_models(backend):
    """Every rank has the weights that it would have been loaded with."""
    for rank, shard in enumerate(backend.shards):
        from simulator.runtime.shard import Shard

        fresh = Shard(rank, len(backend.shards))
        fresh.load(shard._job)
        mine, loaded = shard._model.state_dict(), fresh._model.state_dict()
        assert mine.keys() == loaded.keys()
        assert all((mine[name] == loaded[name]).all() for name in mine)


def kinds(live):
    return [change.kind for change in live.ranks.changed]


@pytest.mark.parametrize("victim", range(4))
def test_the_ranks_that_are_left_go_on_and_equal_the_whole_model(real, victim):
    ran, live = run_all(real, plan_of(real, Kill(at_s=0.0, gpu=victim)))
    assert kinds(live) == ["hangs", "shrinks"]
    hangs, shrinks = live.ranks.changed
    assert hangs.ranks == shrinks.ranks == (victim,)
    assert hangs.at_s == 0.0
    assert hangs.seconds == shrinks.at_s > 0
    assert shrinks.serves_s == shrinks.at_s + shrinks.seconds
    assert shrinks.num_gpus == 3
    assert shrinks.num_requests == [3, 2, 2, 2][victim]  # of nine sequences over four ranks
    for one in ran:
        assert list(one.members) == [rank for rank in range(4) if rank != victim]
        assert len(one.shards) == one.plan.placement.layout.num_ranks == 3
    assert live.clock_s == pytest.approx(shrinks.serves_s + sum(one.seconds for one in ran))


def test_a_notice_of_a_failure_changes_nothing_without_requests(real):
    _, live = run_all(real, plan_of(real, Kill(at_s=0.0, gpu=1, notice_s=5.0)), number=2)
    assert kinds(live) == ["hangs", "shrinks"]


def test_ranks_are_lost_one_after_the_other_until_one_is_left(real):
    failures = [Kill(at_s=at_s, gpu=gpu) for at_s, gpu in ((0, 2), (1e6, 0), (2e6, 3))]
    ran, live = run_all(real, plan_of(real, *failures, num_slots=32), clock=(0, 1e6, 2e6))
    assert kinds(live) == ["hangs", "shrinks"] * 3
    assert [list(one.members) for one in ran[:3]] == [[0, 1, 3], [1, 3], [1]]
    assert [change.num_gpus for change in live.ranks.changed[1::2]] == [3, 2, 1]


def test_a_node_takes_all_of_its_ranks_at_once(real, tiny):
    plan = plan_of(real, Kill(at_s=0.0, node=1), dispatch={"kind": "per_rank"})
    plan = tiny.on(plan, cluster=tiny.cluster(4, 2))
    ran, live = run_all(real, plan)
    assert live.ranks.changed[0].ranks == (2, 3)
    assert list(ran[0].members) == [0, 1]


def test_experts_without_a_copy_are_loaded_and_others_are_not(real):
    """As many slots as three ranks need: what the lost one alone had is loaded, and no more."""
    plan = plan_of(real, Kill(at_s=0.0, gpu=1), num_slots=12)
    placed = plan.placement.experts.placed
    _, live = run_all(real, plan)
    shrinks = live.ranks.changed[1]
    slot_bytes = 4 * (3 * 32 * 32 + 2 * 32 + 32)
    missing = sum(
        8 - len(set(expert_P[rank_P != 1].tolist()))
        for expert_P, rank_P in zip(placed.expert_LP, placed.rank_LP, strict=True)
    )
    assert missing
    assert -(-missing // 3) * slot_bytes <= shrinks.loaded_bytes <= missing * slot_bytes
    no_bias_bytes = shrinks.loaded_bytes / slot_bytes * 4 * 3 * 32 * 32
    assert shrinks.predicted_s == pytest.approx(0.25 + no_bias_bytes / ELASTIC.load_bandwidth)


def test_a_rank_that_works_again_joins_the_others(real):
    ran, live = run_all(real, plan_of(real, Kill(at_s=0.0, gpu=1, restart_s=1e-6)))
    assert kinds(live) == ["hangs", "shrinks", "grows"]
    assert [len(one.members) for one in ran] == [3, 3, 4, 4, 4, 4]
    assert ran[-1].plan.placement.experts.placed is live.experts.plan.placement.experts.placed
    assert live.ranks.changed[-1].ranks == (1,)


@pytest.mark.parametrize("parts", [None, 1])
def test_experts_move_while_all_ranks_are_there_and_stay_while_one_is_lost(real, parts):
    """Lost in the third step, back behind the fifth: experts move before and behind that, in one
    part or a layer at a time, and every step equals the whole model.
    """
    moves = Periodic(every_s=1.0, layers_per_chunk=parts, host_s_per_layer=0.0)
    plan = change_plan(
        plan_of(real, Kill(at_s=3.0, gpu=1, restart_s=2.5), num_slots=12), rebalancing=moves
    )
    ran, live = run_all(real, plan, 9, clock=range(1, 10))
    assert kinds(live) == ["hangs", "shrinks", "grows"]
    lost, back = live.ranks.changed[1].step, live.ranks.changed[2].step
    assert [len(one.members) for one in ran] == [3 if lost <= n < back else 4 for n in range(9)]
    assert 0 < lost < back
    at = [moved.step for moved in live.experts.moves]
    assert any(number < lost for number in at)
    assert any(number > back for number in at)
    assert not any(lost < number < back for number in at)
    placed = live.experts.plan.placement.experts.placed
    assert ran[-1].job.experts.placed is placed
    before = plan.placement.experts.placed
    assert (placed.expert_LP != before.expert_LP).any()


def test_one_rank_joins_while_another_stays_lost(real):
    failures = (Kill(at_s=0.0, gpu=1, restart_s=1e-6), Kill(at_s=0.0, gpu=2))
    ran, live = run_all(real, plan_of(real, *failures, num_slots=32))
    assert kinds(live) == ["hangs", "shrinks", "grows"]
    assert live.ranks.changed[0].ranks == (1, 2)
    assert [list(one.members) for one in ran[-2:]] == [[0, 1, 3]] * 2


def test_all_start_anew_where_the_policy_cannot_do_without_a_rank(real):
    plan = plan_of(real, Kill(at_s=0.0, gpu=1, restart_s=7.0), recovery=Restart(startup_s=0.5))
    ran, live = run_all(real, plan)
    assert kinds(live) == ["hangs", "stops", "starts"]
    assert all(list(one.members) == [0, 1, 2, 3] for one in ran)
    starts = live.ranks.changed[-1]
    assert starts.serves_s == pytest.approx(7.0 + starts.seconds)
    assert starts.predicted_s == 0.5
    assert live.clock_s == pytest.approx(starts.serves_s + sum(one.seconds for one in ran))


def test_ranks_without_slots_for_all_experts_wait_for_the_lost_one(real):
    failure = Kill(at_s=0.0, gpu=1, restart_s=7.0)
    _, live = run_all(real, plan_of(real, failure, num_slots=8))
    assert kinds(live) == ["hangs", "stops", "starts"]


@pytest.mark.parametrize("parallel", [{"tp": 2}, {"tp": 4, "ep": 2}, {"attention_dp": 2, "ep": 2}])
def test_a_restart_is_for_every_layout(real, parallel):
    plan = change_plan(
        real.plan(MOE, **parallel),
        failures=(Kill(at_s=0.0, gpu=1, restart_s=0.0),),
        recovery=Restart(),
    )
    _, live = run_all(real, plan, number=3)
    assert kinds(live) == ["hangs", "stops", "starts"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"recovery": Restart()}, "give the failure a restart_s, or leave the ranks out with rec"),
        ({"num_slots": 8}, "3 that are left have too few slots for 8 experts; .*num_slots = 12$"),
    ],
)
def test_what_never_goes_on_is_said_with_what_would_do(real, keys, said):
    recovery = keys.get("recovery")
    plan = plan_of(real, Kill(at_s=0.0, gpu=1), **keys)
    if recovery is not None:
        spec = plan.spec.model_copy(update={"recovery": {"kind": "restart"}})
    else:
        spec = plan.spec.model_copy(update={"recovery": {"kind": "elastic"}})
    plan = change_plan(plan, spec=spec)
    with pytest.raises(UserError, match=f"rank 1 failed and never works again, .*{said}"):
        run_all(real, plan)


@seeds(0, 8)
def test_any_losses_and_returns_leave_every_output_as_it_was(real, seed):
    rng = np.random.default_rng(seed)
    failures = [
        Kill(
            at_s=float(rng.uniform(0, 0.02)),
            gpu=int(rng.integers(4)),
            restart_s=float(rng.uniform(0, 0.02)) if rng.random() < 0.8 else None,
        )
        for _ in range(4)
    ]
    recovery = ELASTIC if rng.random() < 0.7 else Restart()
    if recovery is not ELASTIC:
        failures = [one.model_copy(update={"restart_s": one.restart_s or 0.0}) for one in failures]
    ran, live = run_all(real, plan_of(real, *failures, recovery=recovery, num_slots=32), number=12)
    times = [change.at_s for change in live.ranks.changed]
    assert times == sorted(times)
    assert all(change.seconds >= 0 for change in live.ranks.changed)
    for one in ran:
        sequences = [shard.num_tokens for shard in one.shards]
        assert sum(sequences) == one.step.num_tokens
