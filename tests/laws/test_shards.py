"""Replicas that nothing joins: served apart and put together, they leave what the whole leaves, to
the last bit.
"""

import dataclasses
import pickle

import numpy as np
import pandas as pd

from simulator.config.workload import SLO
from simulator.engine import loop_state, result_rows, shards
from simulator.engine.shards import merge_shards, serve_shard, split_replicas
from simulator.engine.timeline import make_record
from simulator.policies.balancing.least_outstanding import LeastOutstanding
from simulator.policies.balancing.random import Random
from simulator.policies.balancing.round_robin import RoundRobin
from simulator.results.metrics import summarise
from tests.cases import seeds
from tests.laws.deployments import draw_deployment
from tests.laws.reference_cases import draw_tiers
from tests.laws.test_drafts import draw_drafting
from tests.laws.test_failures import draw_failing
from tests.laws.test_windows import check_same, share_prefixes
from tests.parts import change_plan

BLIND = [Random(), RoundRobin()]


def draw_apart(tiny, seed):
    """Any deployment of one pool in an open loop whose balancer does not look at load."""
    rng = np.random.default_rng([seed, 84])
    draw = (draw_deployment, draw_drafting)[seed % 2]
    while True:
        plan, trace = draw(tiny, seed)
        if plan.prefill is None:
            break
        seed += 10_000
    if rng.random() < 0.3:
        trace = share_prefixes(trace, rng)
        plan = draw_tiers(plan, trace, rng)
    plan = change_plan(plan, replicas=int(rng.integers(2, 7)), balancing=BLIND[rng.integers(2)])
    domain = rng.integers(-1, 2, trace.num_requests)
    return plan, dataclasses.replace(trace, concurrency=None, domain=domain, domains=("a", "b"))


def handle_hand_over(value):
    """What another process gets."""
    return pickle.loads(pickle.dumps(value))


def serve_apart(tiny, plan, trace, most):
    """Served in shards, each as if in a process of its own, and put together."""
    split = split_replicas(plan, trace, most)
    assert len(split) == min(most, plan.serving.replicas)
    served = [
        serve_shard(handle_hand_over(shard), lambda _: None, tiny.tables.fill) for shard in split
    ]
    return merge_shards(plan, trace, split, [handle_hand_over(one) for one in served])


@seeds(8400, 8)
def test_shards_leave_what_the_whole_leaves(tiny, monkeypatch, seed):
    plan, trace = draw_apart(tiny, seed)
    monkeypatch.setattr(
        result_rows, "_LOG_ROWS", int(np.random.default_rng(seed).choice([5, 8192]))
    )
    whole = tiny.serve(plan, trace)
    for most in (2, 3, plan.serving.replicas):
        check_same(whole, serve_apart(tiny, plan, trace, most))


@seeds(8700, 4)
def test_their_record_is_the_one_of_the_whole(tiny, seed):
    plan, trace = draw_apart(tiny, seed)
    trace = dataclasses.replace(trace, judge_from_s=float(np.median(trace.arrival_s)))
    served = tiny.serve(plan, trace), serve_apart(tiny, plan, trace, 3)
    records = [make_record(one) for one in served]
    summaries = [summarise([plan], [record], SLO()) for record in records]
    pd.testing.assert_frame_equal(*summaries, check_exact=True)
    for table in ("requests", "steps", "ranks", "traffic", "spans"):
        frames = [getattr(record, table) for record in records]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert records[0].sampled_steps == records[1].sampled_steps


@seeds(8500, 3)
def test_they_do_where_tables_come_in_parts(tiny, monkeypatch, seed):
    plan, trace = draw_apart(tiny, seed)
    whole = tiny.serve(plan, trace)
    monkeypatch.setattr(loop_state, "ROWS", 4)
    monkeypatch.setattr(shards, "ROWS", 7)
    monkeypatch.setattr(shards, "HELD_ROWS", 9)
    monkeypatch.setattr(result_rows, "HELD_ROWS", 0)
    monkeypatch.setattr(result_rows, "_LOG_ROWS", 5)
    check_same(whole, serve_apart(tiny, plan, trace, 3))


def test_every_request_is_of_one_shard(tiny):
    plan = tiny.plan("dense", replicas=5, num_layers=2, balancing={"kind": "random"})
    trace = tiny.trace(40)
    split = split_replicas(plan, trace, 3)
    assert [shard.plan.serving.replicas for shard in split] == [1, 2, 2]
    assert [shard.first for shard in split] == [0, 1, 3]
    numbers = np.concatenate([shard.trace.part_of.numbers for shard in split])
    assert sorted(numbers) == list(range(40))


def test_what_is_joined_is_not_split(tiny):
    plan = tiny.plan("dense", replicas=4, num_layers=2, balancing={"kind": "round_robin"})
    trace, two = tiny.trace(20), tiny.plan("dense", num_layers=2, cluster="h100-sxm-128")
    assert len(split_replicas(plan, trace, 9)) == 4
    assert not split_replicas(plan, trace, 1)
    assert not split_replicas(two, trace, 9)
    assert not split_replicas(change_plan(plan, balancing=LeastOutstanding()), trace, 9)
    assert not split_replicas(plan, dataclasses.replace(trace, concurrency=3), 9)
    assert not split_replicas(dataclasses.replace(plan, prefill=two), trace, 9)
    failing, _ = draw_failing(tiny, 3349)
    assert failing.failures
    assert not split_replicas(dataclasses.replace(plan, failures=failing.failures), trace, 9)


def test_refused_requests_take_no_turn_in_shards_either(tiny):
    scheduling = {"kind": "no_evict", "token_budget": 256}
    plan = tiny.plan("dense", replicas=4, scheduling=scheduling)
    trace = tiny.trace(80, 300.0, longest_input=600)
    for balancing in BLIND:
        own = change_plan(plan, balancing=balancing)
        whole = tiny.serve(own, trace)
        assert {"finished", "refused"} == set(whole.requests["outcome"])
        for most in (2, 3, 4):
            check_same(whole, serve_apart(tiny, own, trace, most))
