"""Replicas that are launched, drain and leave while others serve and fail: every request finishes
or is lost, drains lose nothing, and what happens is the same at every fidelity.
"""

from itertools import count

import numpy as np
import pandas as pd
import pytest

from simulator.base.plugins import build
from simulator.engine.timeline import serve
from simulator.policies.failures import Change
from tests.cases import seeds
from tests.laws.deployments import (
    check_same_events,
    draw_deployment,
    serve_by_events,
)
from tests.laws.failing import check_outcomes, with_changes
from tests.laws.test_recovery import draw_elastic, draw_gpu_losses, recover
from tests.parts import change_plan


def draw_policy(plan, rng, span_s):
    """A schedule of any numbers, or a policy that looks at the load, quicker and slower than a run
    of ``span_s``.
    """
    most = plan.serving.replicas
    keys = {
        "startup_s": float(rng.choice([0.0, 0.03, 0.2]) * span_s),
        "replaces_failed": bool(rng.random() < 0.7),
    }
    if rng.random() < 0.5:
        times_s = np.sort(rng.uniform(0, span_s, int(rng.integers(1, 7))))
        if rng.random() < 0.6:
            times_s[0] = 0.0
        changes = [
            {"at_s": at_s, "replicas": int(rng.integers(1, most + 1))} for at_s in times_s.tolist()
        ]
        return build("scaling", {"kind": "schedule", "changes": changes, **keys}, "test")
    keys |= {
        "target": float(rng.choice([1.0, 4.0, 20.0])),
        "metric": "requests",
        "every_s": max(1e-3, float(rng.choice([0.02, 0.1]) * span_s)),
        "stabilization_s": float(rng.choice([0.0, 0.1]) * span_s),
    }
    return build("scaling", {"kind": "target_load", **keys}, "test")


def announce_some(plan, rng, span_s):
    """The plan with some of its failures announced, long or shortly before."""
    changes = plan.failures[0].script
    notices = [
        change._replace(at_s=max(0.0, change.at_s - rng.uniform(0, span_s / 3)), is_notice=True)
        for change in changes
        if not change.starts and rng.random() < 0.5
    ]
    told = sorted([*notices, *changes], key=lambda change: change.at_s)
    return with_changes(plan, *told)


def draw_single_pool(tiny, seed, draw=draw_deployment):
    """The first deployment of a seed's whose replicas are all of one kind."""
    drawn = (draw(tiny, [seed, attempt]) for attempt in count())
    return next((plan, trace) for plan, trace in drawn if plan.prefill is None)


def draw_scaled(tiny, seed):
    """Any deployment whose replicas are of one kind, which scales, and may fail, restart, shrink
    and rebalance its experts meanwhile.
    """
    rng = np.random.default_rng([seed, 17])
    draw = draw_deployment if rng.random() < 0.7 else draw_elastic
    plan, trace = draw_single_pool(tiny, seed, draw)
    replicas = int(rng.choice([2, 3, 5]))
    plan = change_plan(plan, replicas=replicas, failures=())
    span_s = float(np.nanmax(tiny.serve(plan, trace).requests_table()["finish_s"]))
    plan = change_plan(plan, scaling=draw_policy(plan, rng, span_s))
    if rng.random() < 0.6:
        if draw is draw_deployment:
            plan = change_plan(plan, recovery=recover("restart", rng, span_s))
        plan = with_changes(plan, *draw_gpu_losses(plan, rng, span_s))
        plan = announce_some(plan, rng, span_s)
    layout = plan.placement.layout
    may_move = plan.serving.recovery.shrink.__qualname__.startswith("Restart")
    if may_move and plan.placement.experts is not None and layout.travels and layout.pp == 1:
        keys = {"every_s": max(1e-3, span_s * float(rng.choice([0.05, 0.3])))}
        keys |= {"threshold": 1.0, "least_gain": 1e-6, "asynchronous": bool(rng.random() < 0.5)}
        if rng.random() < 0.5:
            rebalancing = build("rebalancing", {"kind": "periodic", **keys}, "test")
            plan = change_plan(plan, rebalancing=rebalancing)
    return plan, trace


@seeds(9000, 20, soak=400)
def test_finished_and_lost_are_what_arrived_and_no_token_comes_twice(tiny, seed):
    plan, trace = draw_scaled(tiny, seed)
    served = tiny.serve(plan, trace)
    assert len(check_outcomes(plan, trace, served)) == trace.num_requests
    check_held(served, plan, trace)


def check_held(served, plan, trace):
    """Steps are of replicas that are held and have started, and whoever leaves had drained; nobody
    is sent to a replica that drains.
    """
    steps, table = served.steps_of("both"), served.requests_table()
    first = plan.serving.first_replicas
    for replica in range(plan.serving.replicas):
        own = steps[steps["replica"] == replica]
        spans, since_s, drains_s = [], 0.0 if replica < first else None, None
        for change in served.changed:
            if replica not in change.replicas:
                continue
            if change.kind == "launches":
                assert since_s is None
                assert change.serves_s - change.at_s == pytest.approx(
                    plan.serving.scaling.startup_s
                )
                since_s, drains_s = change.serves_s, None
            elif change.kind == "drains":
                assert drains_s is None
                drains_s = change.at_s
            elif change.kind == "leaves":
                spans.append((since_s, change.at_s))
                if (
                    drains_s is not None
                ):  # the first step of a request comes before its replica drains
                    during = own[(own["start_s"] > drains_s) & (own["start_s"] < change.at_s)]
                    assert (during["running"] + during["waiting"] > 0).all()
                since_s = None
        if since_s is not None:
            spans.append((since_s, np.inf))
        starts_s, ends_s = own["start_s"].to_numpy(), (own["start_s"] + own["duration_s"])
        inside = np.zeros(len(own), dtype=bool)
        for begin_s, end_s in spans:
            inside |= (starts_s >= begin_s - 1e-9) & (ends_s.to_numpy() <= end_s + 1e-9)
        assert inside.all()
    if not plan.failures:
        assert not table["num_retries"].any()
        assert (table["outcome"] == "finished").all()  # at least one replica serves always


@seeds(9000, 20)
def test_scaling_is_the_same_at_every_fidelity(tiny, monkeypatch, seed):
    plan, trace = draw_scaled(tiny, seed)
    compiled = tiny.serve(plan, trace)
    simpy = serve_by_events(monkeypatch, plan, trace, tiny.tables)
    check_same_events(compiled, simpy)
    assert name_changes(compiled) == name_changes(simpy)


@seeds(9000, 12)
@pytest.mark.parametrize("most", [3, 6])
def test_a_schedule_that_never_changes_is_a_fixed_deployment(tiny, most, seed):
    """Whether others could be launched or not."""
    plan, trace = draw_single_pool(tiny, seed)
    changes = [{"at_s": 0.0, "replicas": 3}, {"at_s": 0.001, "replicas": 3}]
    policy = build("scaling", {"kind": "schedule", "changes": changes}, "test")
    fixed = tiny.serve(change_plan(plan, replicas=3), trace)
    scaled = tiny.serve(change_plan(plan, replicas=most, scaling=policy), trace)
    for found in (lambda s: s.requests_table(), lambda s: s.steps_of("both")):
        pd.testing.assert_frame_equal(found(fixed), found(scaled), check_exact=True)
    assert scaled.changed == ()


def with_schedule(plan, *changes, **keys):
    table = {"kind": "schedule", "changes": [{"at_s": t, "replicas": n} for t, n in changes]}
    return change_plan(plan, scaling=build("scaling", table | keys, "test"))


def name_changes(served):
    return [(change.kind, *change.replicas) for change in served.changed]


def test_nothing_is_sent_to_a_replica_that_drains_and_it_loses_nothing(tiny):
    plan, trace = tiny.plan("dense", num_layers=2, replicas=2), tiny.trace(200, 400.0, 60, 60)
    at_s = float(serve(plan, trace).requests_table()["finish_s"].median())
    served = serve(with_schedule(plan, (0.0, 2), (at_s, 1)), trace)
    table = served.requests_table()
    assert (table["outcome"] == "finished").all()
    assert not table["num_retries"].any()
    delay_s = served.ingress_delay_s
    later = table[table["arrival_s"] + delay_s > at_s]
    assert len(later) > 20
    assert (later["replica"] == 0).all()
    own = table[table["replica"] == 1]
    assert name_changes(served) == [("drains", 1), ("leaves", 1)]
    assert served.changed[1].at_s == own["finish_s"].max()


@pytest.mark.parametrize("replaces", [True, False])
def test_another_replica_takes_the_place_of_one_that_failed(tiny, replaces):
    plan, trace = tiny.plan("dense", num_layers=2, replicas=3), tiny.trace(300, 400.0, 60, 60)
    end_s = float(serve(plan, trace).requests_table()["finish_s"].max())
    plan = with_schedule(plan, (0.0, 2), startup_s=0.1 * end_s, replaces_failed=replaces)
    fails = Change(0.3 * end_s, "both", (0,), starts=False)
    served = serve(with_changes(plan, fails, fails._replace(at_s=0.7 * end_s, starts=True)), trace)
    table = served.requests_table()
    assert (table["outcome"] == "finished").all()
    assert table["num_retries"].any()
    if replaces:  # and the failed one is not needed once it is repaired
        assert name_changes(served) == [("stops", 0), ("launches", 2), ("leaves", 0)]
        assert served.changed[1].at_s == served.changed[2].at_s == pytest.approx(0.3 * end_s)
        assert (table["replica"] == 2).any()
    else:
        assert name_changes(served) == [("stops", 0), ("starts", 0)]
        assert not (table["replica"] == 2).any()


def test_what_has_no_free_gpus_waits_for_a_replica_to_leave(tiny):
    """Of two replicas one drains for long, and another is wanted meanwhile."""
    plan = tiny.plan("dense", num_layers=2, replicas=2)
    trace = tiny.trace(200, 400.0, 60, 400)
    at_s = float(serve(plan, trace).requests_table()["finish_s"].quantile(0.3))
    plan = with_schedule(plan, (0.0, 2), (at_s, 1), (1.01 * at_s, 2), startup_s=0.0)
    served = serve(plan, trace)
    drains, leaves, launches = served.changed
    assert name_changes(served) == [("drains", 1), ("leaves", 1), ("launches", 1)]
    assert launches.at_s == leaves.at_s > drains.at_s
    assert (served.requests_table()["outcome"] == "finished").all()


def test_a_replica_that_joins_has_the_experts_where_they_are_by_then(tiny):
    """At the fidelity that simulates ranks its steps are as long as the others' are."""
    plan = tiny.plan("moe", attention_dp=4, ep=4, num_layers=2, replicas=2)
    keys = {
        "kind": "periodic",
        "every_s": 0.05,
        "least_gain": 1e-6,
        "placement": {"kind": "greedy"},
    }
    plan = change_plan(plan, rebalancing=build("rebalancing", keys, "test"))
    trace = tiny.trace(600, 3000.0, 60, 60)
    served = serve(with_schedule(plan, (0.0, 1), (0.1, 2), startup_s=0.0), trace, "rank")
    assert served.rebalances
    assert served.rebalances[0].at_s < 0.1
    placed = served.pools["both"].plan.placement.experts.placed
    assert not np.array_equal(placed.rank_LP, plan.placement.experts.placed.rank_LP) or (
        not np.array_equal(placed.expert_LP, plan.placement.experts.placed.expert_LP)
    )
    steps = served.steps_of("both")
    decodes = steps[(steps["prefill_tokens"] == 0) & (steps["start_s"] > 0.12)]
    means = decodes.groupby("replica")["load_imbalance"].mean()
    assert means[1] == pytest.approx(means[0], rel=0.1)


def test_scaling_at_the_fidelity_of_messages_does_the_same(tiny):
    plan = tiny.plan("moe", attention_dp=2, ep=2, num_layers=2, replicas=2)
    trace = tiny.trace(60, 400.0, 60, 20)
    plan = with_schedule(plan, (0.0, 2), (0.05, 1), (0.1, 2), startup_s=0.01)
    named = [name_changes(serve(plan, trace, one)) for one in ("step", "rank", "message")]
    assert named[0] == named[1] == named[2]
    assert ("launches", 1) in named[0]


def draw_announced(tiny, seed):
    """A deployment whose failures are announced: any of one pool, or two pools with room."""
    rng = np.random.default_rng([seed, 19])
    if rng.random() < 0.3:
        prefill = {"parallel": {"tp": 2}, "replicas": 3}
        keys = {"cluster": "h100-sxm-128", "engine": str(rng.choice(["vllm", "sglang"]))}
        plan = tiny.plan("dense", tp=2, num_layers=2, replicas=3, prefill=prefill, **keys)
        trace = tiny.trace(90, float(rng.choice([400.0, 5000.0])), 700, 60, seed=seed)
    else:
        plan, trace = draw_single_pool(tiny, seed)
    span_s = float(np.nanmax(tiny.serve(plan, trace).requests_table()["finish_s"]))
    plan = with_changes(plan, *draw_gpu_losses(plan, rng, span_s))
    return announce_some(plan, rng, span_s), trace


@seeds(9500, 16)
def test_announced_failures_lose_no_request_twice_and_are_the_same_at_every_fidelity(
    tiny, monkeypatch, seed
):
    plan, trace = draw_announced(tiny, seed)
    served = tiny.serve(plan, trace)
    check_outcomes(plan, trace, served)
    check_same_events(served, serve_by_events(monkeypatch, plan, trace, tiny.tables))


@pytest.mark.parametrize("notice_s", [0.0, 1e9])
def test_a_failure_that_is_announced_early_enough_costs_no_request_its_cache(tiny, notice_s):
    plan, trace = tiny.plan("dense", num_layers=2, replicas=2), tiny.trace(200, 400.0, 60, 60)
    end_s = float(serve(plan, trace).requests_table()["finish_s"].max())
    keys = {"at_s": 0.5 * end_s, "gpu": 0, "restart_s": 0.1 * end_s}
    notice_s = min(notice_s, 0.3 * end_s)
    kill = build("failures", {"kind": "kill", "notice_s": notice_s, **keys}, "test")
    served = serve(change_plan(plan, failures=(kill,)), trace)
    table = served.requests_table()
    assert (table["outcome"] == "finished").all()
    assert table["num_retries"].any() == (notice_s == 0)
    told = [("evacuates", 0)] if notice_s else []
    assert name_changes(served) == [*told, ("stops", 0), ("starts", 0)]
    comes_s = table["arrival_s"] + served.ingress_delay_s
    during = comes_s.between(keys["at_s"] - notice_s, keys["at_s"] + keys["restart_s"], "neither")
    assert (table["replica"][during] == 1).all()
    assert (table["replica"][comes_s > 0.65 * end_s] == 0).any()


def test_a_replica_is_replaced_when_its_failure_is_announced(tiny):
    """So that the other one has started when it is gone."""
    plan, trace = tiny.plan("dense", num_layers=2, replicas=3), tiny.trace(300, 400.0, 60, 60)
    end_s = float(serve(plan, trace).requests_table()["finish_s"].max())
    plan = with_schedule(plan, (0.0, 2), startup_s=0.2 * end_s)
    keys = {"at_s": 0.7 * end_s, "gpu": 1, "notice_s": 0.3 * end_s}
    kill = build("failures", {"kind": "kill", **keys}, "test")
    served = serve(change_plan(plan, failures=(kill,)), trace)
    named = name_changes(served)
    assert named == [("evacuates", 1), ("launches", 2), ("drains", 1), ("leaves", 1)]
    assert served.changed[1].at_s == pytest.approx(0.4 * end_s)
    assert served.changed[3].at_s < 0.7 * end_s
    table = served.requests_table()
    assert (table["outcome"] == "finished").all()
    assert not table["num_retries"].any()
