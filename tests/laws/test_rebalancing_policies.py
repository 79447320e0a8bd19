"""Rebalancing policies: how even they make the load of ranks, how little they move for it, and what
they do under drift.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.engine.timeline import serve
from simulator.policies.placement import Placed
from simulator.policies.placement.eplb import Eplb
from simulator.policies.rebalancing import ExpertLoad
from simulator.policies.rebalancing.incremental import Incremental
from simulator.policies.rebalancing.periodic import Periodic, keep_where_alike
from simulator.work.expert_moves import count_expert_moves
from tests.cases import cases
from tests.laws.test_mixes import KEYS, TWO, drift
from tests.laws.test_placement_laws import find_best
from tests.parts import change_plan
from tests.single_steps import take_apart

pytestmark = pytest.mark.shipped_draws

RNG = np.random.default_rng(0)


def load_of(load_LE, placed, at_s=10.0):
    return ExpertLoad(at_s, 1000, np.asarray(load_LE, dtype=np.float64), placed)


def draw_load(seed, num_layers=3, num_experts=16, sigma=1.0):
    return 100 * np.random.default_rng(seed).lognormal(0, sigma, (num_layers, num_experts))


def place_in_order(num_layers, num_slots, num_ranks, num_experts):
    """Experts one after another, the first ones once more where there are more slots."""
    expert_LP = np.tile(np.arange(num_slots) % num_experts, (num_layers, 1))
    rank_LP = np.tile(np.repeat(np.arange(num_ranks), num_slots // num_ranks), (num_layers, 1))
    return Placed(expert_LP, rank_LP, num_ranks)


def count_moves(before, after):
    return int(count_expert_moves(before, after, np.zeros(before.num_ranks, np.int64)).sum())


def test_an_incremental_placement_is_near_the_best():
    """Twelve experts on four ranks; the best is found by a solver."""
    ratios = []
    for seed in range(12):
        load = load_of(draw_load(seed, 1, 12, sigma=0.8), place_in_order(1, 12, 4, 12))
        placed = Incremental(every_s=1, tolerance=1.0).decide(load, RNG)
        ratios.append(load.measure_imbalance(placed) / find_best(load.load_LE[0], 4, 12))
    assert min(ratios) >= 1 - 1e-3
    assert np.mean(ratios) <= 1.05


@cases(60)
@given(st.integers(0, 100_000), st.sampled_from([(16, 4), (20, 4), (24, 8)]))
def test_an_incremental_placement_is_no_less_even_and_keeps_copies(seed, size):
    num_slots, num_ranks = size
    before = place_in_order(3, num_slots, num_ranks, 16)
    load = load_of(draw_load(seed), before)
    after = Incremental(every_s=1, tolerance=1.05).decide(load, RNG)
    if after is None:
        return
    assert load.measure_imbalance(after) < load.measure_imbalance(before)
    assert np.array_equal(after.rank_LP, before.rank_LP)
    assert np.array_equal(np.sort(after.expert_LP, axis=1), np.sort(before.expert_LP, axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_an_incremental_placement_moves_less_than_a_new_one(seed):
    before = Eplb(num_slots=36).place(draw_load(seed, 4, 32), 4, RNG)
    changed = draw_load(seed, 4, 32) * draw_load(seed + 50, 4, 32, sigma=0.2)
    load = load_of(changed, before)
    little = Incremental(every_s=1, tolerance=1.05).decide(load, RNG)
    whole = Periodic(every_s=1).decide(load._replace(at_s=1.0), RNG)
    assert little is not None
    assert count_moves(before, little) < 0.5 * count_moves(before, whole)


@cases(60)
@given(st.integers(0, 100_000))
def test_renaming_ranks_keeps_loads_and_moves_no_more(seed):
    rng = np.random.default_rng(seed)
    before, after = (
        dataclasses.replace(one, expert_LP=rng.permuted(one.expert_LP, axis=1))
        for one in (place_in_order(2, 16, 4, 16), place_in_order(2, 16, 4, 16))
    )
    renamed = keep_where_alike(before, after)
    load = load_of(draw_load(seed, 2), before)
    assert load.measure_imbalance(renamed) == pytest.approx(load.measure_imbalance(after))
    assert count_moves(before, renamed) <= count_moves(before, after)
    assert count_moves(before, keep_where_alike(before, before)) == 0


def test_a_window_ends_where_experts_are_looked_at():
    policy = Periodic(every_s=10, window_s=3)
    looks = policy.looks()
    assert [next(looks) for _ in range(4)] == [7, 10, 17, 20]
    load = load_of(draw_load(1), place_in_order(3, 16, 4, 16))
    assert policy.decide(load._replace(at_s=7.0), RNG) is None
    assert policy.decide(load._replace(at_s=10.0), RNG) is not None
    with pytest.raises(ValidationError, match=r"window_s \(11\) must be at most every_s \(10\)"):
        Periodic(every_s=10, window_s=11)


def test_a_window_may_be_counted_in_steps():
    policy = Periodic(every_steps=3000, window_steps=1000)
    looks = policy.looks()
    assert [next(looks) for _ in range(4)] == [2000, 3000, 5000, 6000]
    load = load_of(draw_load(1), place_in_order(3, 16, 4, 16))
    assert policy.decide(load._replace(num_steps=2000), RNG) is None
    assert policy.decide(load._replace(num_steps=3000), RNG) is not None
    with pytest.raises(ValidationError, match=r"window_steps \(4\) must be at most every_steps"):
        Periodic(every_steps=3, window_steps=4)
    with pytest.raises(ValidationError, match="every_steps counts steps, and every_s seconds"):
        Incremental(every_steps=3, every_s=4)


@pytest.mark.parametrize(
    "keys", [{"threshold": 9.0}, {"least_gain": 9.0}], ids=["even enough", "too little gained"]
)
def test_experts_stay_where_moving_is_not_worth_it(keys):
    load = load_of(draw_load(1), place_in_order(3, 16, 4, 16))
    assert Periodic(every_s=10).decide(load, RNG) is not None
    assert Periodic(every_s=10, **keys).decide(load, RNG) is None
    assert Periodic(every_s=10).decide(load._replace(num_tokens=0), RNG) is None


@pytest.mark.parametrize("kind", ["biased", "eplb"])
def test_a_placement_with_slots_for_copies_fills_those_that_there_are(kind):
    load_LE = draw_load(1)
    order_LE = np.argsort(-load_LE)  # the most loaded ones on the first rank
    start = place_in_order(3, 20, 4, 16)
    expert_LP = np.take_along_axis(order_LE, start.expert_LP, axis=1)
    load = load_of(load_LE, dataclasses.replace(start, expert_LP=expert_LP))
    placed = Periodic(every_s=10, placement={"kind": kind}).decide(load, RNG)
    assert placed is not None
    assert placed.expert_LP.shape == (3, 20)


def rebalanced(tiny, policy, **keys):
    plan = tiny.plan("moe", **KEYS, routing={**TWO, "sigma": 1.2}, **keys)
    return change_plan(plan, rebalancing=policy)


def measure(served):
    """Mean imbalance over time, and the moves."""
    steps, costs = served.steps_of("both"), served.costs
    weights = steps["duration_s"].to_numpy()
    return float(np.average(costs["load_imbalance"].to_numpy(), weights=weights)), served.rebalances


def test_without_drift_a_rebalance_gains_nothing_more(tiny):
    """All requests are of one domain: experts move once, to where they stay."""
    trace = dataclasses.replace(drift(tiny.trace(300, 600.0)), domain=np.zeros(300, dtype=np.int64))
    _, moves = measure(serve(rebalanced(tiny, Periodic(every_s=0.05)), trace))
    assert len(moves) == 1
    assert moves[0].imbalance_after < moves[0].imbalance_before


def test_a_later_look_is_worse_under_drift(tiny):
    trace = drift(tiny.trace(600, 600.0))
    found = [
        measure(serve(rebalanced(tiny, Periodic(every_s=every_s)), trace))[0]
        for every_s in (0.05, 0.4)
    ]
    never, _ = measure(serve(rebalanced(tiny, Periodic(every_s=100.0)), trace))
    assert found[0] < found[1] < never


@pytest.mark.parametrize("policy", [Periodic, Incremental])
def test_asynchronous_moves_stop_no_step(tiny, policy):
    trace = drift(tiny.trace(300, 2000.0))
    gaps = {}
    for stops in (True, False):
        served = serve(rebalanced(tiny, policy(every_s=0.05, asynchronous=not stops)), trace)
        steps = served.steps_of("both")
        starts_s, ends_s = steps["start_s"], steps["start_s"] + steps["duration_s"]
        gaps[stops] = float((starts_s.to_numpy()[1:] - ends_s.to_numpy()[:-1]).max())
        assert served.rebalances
        assert (served.requests_table()["outcome"] == "finished").all()
    assert gaps[True] >= served.rebalances[0].alone_s > gaps[False]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_moves_follow_each_other_and_are_judged_when_they_have_arrived(tiny, asynchronous):
    """Looks come ten times as often as moves take."""
    policy = Incremental(every_s=0.01, tolerance=1.01, asynchronous=asynchronous)
    served = serve(rebalanced(tiny, policy), drift(tiny.trace(400, 1000.0)))
    moves = served.rebalances
    assert len(moves) > 2
    assert {moved.stops for moved in moves} == {not asynchronous}
    for before, after in itertools.pairwise(moves):
        assert after.at_s >= before.at_s + before.seconds
    judged = [moved for moved in moves if moved.imbalance_next is not None]
    assert judged
    assert judged[0].imbalance_next < judged[0].imbalance_unmoved


def test_ranks_that_experts_do_not_divide_are_rebalanced(tiny):
    plan = tiny.plan("moe", attention_dp=3, ep=3, routing=TWO, cluster="h100-sxm-16")
    plan = change_plan(plan, rebalancing=Periodic(every_s=0.05))
    served = serve(plan, drift(tiny.trace(200, 1000.0)))
    assert (served.requests_table()["outcome"] == "finished").all()


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_experts_that_move_layer_by_layer_stop_no_replica_for_long(tiny, fidelity):
    trace = drift(tiny.trace(120, 1000.0, 100, 12))
    found, gap_s = {}, {}
    for num_layers in (None, 1):
        policy = Periodic(every_s=0.05, layers_per_chunk=num_layers)
        served = serve(rebalanced(tiny, policy, replicas=2), trace, fidelity)
        assert (served.requests_table()["outcome"] == "finished").all()
        steps = served.steps_of("both").sort_values(["replica", "start_s"])
        ends_s = (steps["start_s"] + steps["duration_s"]).groupby(steps["replica"]).shift()
        gap_s[num_layers] = float((steps["start_s"] - ends_s).max())
        found[num_layers] = served.rebalances[0]
    whole, parts = found[None], found[1]
    assert (parts.num_experts, parts.num_bytes) == (whole.num_experts, whole.num_bytes)
    assert parts.imbalance_after == whole.imbalance_after
    assert parts.seconds >= whole.seconds * (1 - 1e-12)
    assert gap_s[None] >= whole.seconds * (1 - 1e-9)
    assert gap_s[1] < 0.5 * gap_s[None]  # of four layers


@pytest.mark.parametrize("policy", [Periodic, Incremental])
def test_experts_move_between_steps_or_beside_them(policy):
    with pytest.raises(ValidationError, match="leave one of them out"):
        policy(every_s=1.0, asynchronous=True, layers_per_chunk=2)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_experts_move_behind_as_many_steps_as_the_policy_counts(tiny, fidelity, asynchronous):
    """Steps of the replica that has taken most, at every fidelity; moves under way are waited
    for.
    """
    policy = Periodic(every_steps=40, least_gain=1e-6, asynchronous=asynchronous)
    plan = tiny.plan("moe", **{**KEYS, "replicas": 2}, routing={**TWO, "sigma": 1.2})
    served = serve(change_plan(plan, rebalancing=policy), drift(tiny.trace(200, 600.0)), fidelity)
    steps = take_apart(served.steps_of("both"))
    assert len(served.rebalances) > 2
    for move in served.rebalances:
        begun = steps[steps["start_s"] < move.at_s - 1e-9]
        assert begun.groupby("replica").size().max() % 40 == 0
