"""Failures by a rate, replicas that go on with the ranks they have left, and what is said of it."""

from itertools import takewhile

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.commands.run import run as run_scenario
from simulator.engine.pool import PoolState
from simulator.engine.replica_states import RanksLeft, count_loaded_bytes
from simulator.policies.failures import Machines
from simulator.policies.recovery import Loss
from tests.small_scenario import small_scenario

HOUR_S = 3600.0
POOLS = {"decode": Machines(4, 32, 8, "a"), "prefill": Machines(4, 8, 8, "a", 128)}


def draw(seed, days=1000.0, machines=POOLS, **keys):
    policy = build("failures", {"kind": "random", **keys}, "test")
    changes = policy.changes(machines, np.random.default_rng(seed))
    return list(takewhile(lambda change: change.at_s < days * 24 * HOUR_S, changes))


def test_gpus_fail_as_often_as_the_rate_says_and_each_is_repaired():
    changes = draw(1, mtbf_gpu_hours=10_000.0, repair_s=7200.0)
    fails = [change for change in changes if not change.starts]
    # 160 GPUs for a thousand days are 3.84 million hours.
    assert len(fails) == pytest.approx(384, abs=4 * 384**0.5)
    assert {len(change.gpus) for change in fails} == {1}
    shares = [sum(change.pool == name for change in fails) / len(fails) for name in POOLS]
    assert shares == pytest.approx([0.8, 0.2], abs=0.09)
    repairs = {(c.at_s, c.pool, c.gpus) for c in changes if c.starts}
    due = {(c.at_s + 7200.0, c.pool, c.gpus) for c in fails if c.at_s < 999.9 * 24 * HOUR_S}
    assert due <= repairs


def test_another_seed_draws_other_failures_and_a_node_takes_the_gpus_of_all_pools():
    assert draw(1, 100.0)[0].at_s != draw(2, 100.0)[0].at_s
    shared = {"decode": Machines(3, 4, 8, "a"), "prefill": Machines(3, 2, 8, "a", 12)}
    fails = [c for c in draw(3, machines=shared, node_share=1.0) if not c.starts]
    by_time = {}
    for change in fails:
        by_time.setdefault(change.at_s, {})[change.pool] = change.gpus
    assert {"decode": (8, 9, 10, 11), "prefill": (0, 1, 2, 3)} in by_time.values()


def test_what_is_broken_does_not_fail_again_before_it_is_repaired():
    busy = {"both": Machines(1, 2, 8, "a")}
    broken = set()
    for change in draw(5, 30.0, busy, mtbf_gpu_hours=2.0, repair_s=8 * HOUR_S):
        if change.starts:
            broken -= set(change.gpus)
            continue
        assert not broken & set(change.gpus)
        broken |= set(change.gpus)


def place(num_slots, num_ranks, load_LE):
    policy = build("placement", {"kind": "eplb", "num_slots": num_slots}, "test")
    return policy.place(load_LE, num_ranks, np.random.default_rng(0))


@pytest.mark.parametrize("lost", [(0,), (1, 2), (0, 1, 2, 3)])
def test_living_slots_keep_their_experts_but_for_copies_that_make_room(lost):
    """Of 16 experts in 32 slots on 8 ranks as many are loaded as have no living copy."""
    load_LE = np.random.default_rng(1).lognormal(0, 1, (3, 16))
    placed, lost_D = place(32, 8, load_LE), np.isin(np.arange(8), lost)
    found = build("recovery", {"kind": "elastic"}, "test").shrink(Loss(lost_D, placed, load_LE))
    left_R = np.flatnonzero(~lost_D)
    assert found.num_ranks == len(left_R)
    for layer in range(3):
        lives_P = ~lost_D[placed.rank_LP[layer]]
        before, after = placed.expert_LP[layer][lives_P], found.expert_LP[layer]
        assert (left_R[found.rank_LP[layer]] == placed.rank_LP[layer][lives_P]).all()
        missing = set(range(16)) - set(before.tolist())
        assert set(after.tolist()) == set(range(16))
        assert (before != after).sum() == len(missing)
        assert set(after[before != after].tolist()) == missing


def run(tmp_path, more, ranks=4):
    path = tmp_path / "scenario.toml"
    path.write_text(small_scenario("stdlib-moe", ranks, more=more))
    return run_scenario(path)


ELASTIC = """
placement = {{ kind = "eplb", num_slots = {slots} }}
failures = [{{ kind = "kill", at_s = {at_s}, gpu = 2, restart_s = 0.02 }}]
recovery = {{ kind = "elastic", detection_s = 0.01, regroup_s = 0.01, startup_s = 0.01 }}
"""


def test_a_run_says_which_gpus_went_on_and_since_when(tmp_path):
    results = run(tmp_path, ELASTIC.format(slots=32, at_s=0.05), ranks=8)
    facts, row = results.run["deployments"]["own"], results.summary.iloc[0]
    assert [change["kind"] for change in facts["changes"]] == ["hangs", "shrinks", "grows"]
    assert [change["num_gpus"] for change in facts["changes"]] == [0, 7, 8]
    assert [change["at_s"] for change in facts["changes"]] == pytest.approx([0.05, 0.06, 0.08])
    assert [change["serves_s"] for change in facts["changes"]][1:] == pytest.approx([0.07, 0.09])
    assert row["num_requests"] == 5
    assert "elastic" in facts["recovery"]
    assert 0 < row["availability"] < 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('recovery = { kind = "elastic", detection_s = -1.0 }', "detection_s must be at least 0"),
        ('recovery = { kind = "restart", requests = "drop" }', "'resume', 'retry' or 'lose'"),
        ('recovery = { kind = "elastc" }', "elastic"),
    ],
)
def test_what_is_not_simulated_is_refused_with_what_is(tmp_path, more, said):
    with pytest.raises(UserError) as refused:
        run(tmp_path, more)
    assert said in str(refused.value)
    assert "[deployments" in str(refused.value)


TWICE = """
placement = {{ kind = "eplb", num_slots = 32 }}
failures = [
    {{ kind = "kill", at_s = 0.09, gpu = 2, restart_s = {restart_s} }},
    {{ kind = "kill", at_s = 0.11, gpu = 3 }},
]
recovery = {{ kind = "{kind}", detection_s = 0.03, startup_s = 0.005 }}
"""


def test_what_fails_meanwhile_is_left_out_with_what_is_noticed(tmp_path):
    results = run(tmp_path, TWICE.format(kind="elastic", restart_s=9.0), ranks=8)
    changes = results.run["deployments"]["own"]["changes"]
    assert [(one["kind"], one["num_gpus"]) for one in changes] == [("hangs", 0), ("shrinks", 6)]
    assert changes[1]["at_s"] == pytest.approx(0.12)


def test_a_replica_does_not_start_on_a_gpu_that_has_failed(tmp_path):
    results = run(tmp_path, TWICE.format(kind="restart", restart_s=0.001), ranks=8)
    changes = results.run["deployments"]["own"]["changes"]
    assert [one["kind"] for one in changes] == ["hangs", "stops"]


def test_experts_that_a_rank_has_loaded_are_not_loaded_again(tiny):
    """A group more is lost: what was loaded for the first ones stays, and less is loaded than where
    all are lost at once.
    """
    plan = tiny.plan("moe", attention_dp=8, ep=8, placement={"kind": "eplb", "num_slots": 64})
    pool, load_LE = PoolState(plan, tiny.trace(4)), np.ones((4, 32))
    policy = build("recovery", {"kind": "elastic"}, "test")

    def shrink(lost, lost_D, placed):
        found = policy.shrink(Loss(lost_D, placed, load_LE))
        return RanksLeft(np.setdiff1d(np.arange(8), lost), found)

    whole = plan.placement.experts.placed
    three = shrink((0, 1, 2), np.arange(8) < 3, whole)
    four = shrink((0, 1, 2, 3), np.arange(5) == 0, three.placed)
    at_once = shrink((0, 1, 2, 3), np.arange(8) < 4, whole)
    assert count_loaded_bytes(pool.plan.placement, three, three) == 0
    more, all_bytes = (
        count_loaded_bytes(pool.plan.placement, three, four),
        count_loaded_bytes(pool.plan.placement, None, at_once),
    )
    assert 0 < more < all_bytes
