"""Replicas that hang, shrink to the ranks they have left, and grow again: every request finishes or
is lost, no token comes twice, and what happens is the same at every fidelity.
"""

import dataclasses

import numpy as np
import pytest

from simulator.base.plugins import build
from simulator.engine.timeline import serve
from simulator.policies.failures import Change
from tests.cases import seeds
from tests.laws.deployments import (
    BALANCERS,
    SCHEDULERS,
    check_same_events,
    draw_deployment,
    serve_by_events,
    shrink_cache,
)
from tests.laws.failing import check_outcomes, with_changes
from tests.parts import change_plan

SPLITS = [
    ("moe", {"attention_dp": 4, "ep": 4}),
    ("sliding-moe", {"tp": 2, "attention_dp": 2, "ep": 4}),
    ("latent-moe", {"attention_dp": 2, "ep": 2}),
    ("compressed-moe", {"attention_dp": 4, "ep": 4}),
]


def recover(kind, rng, span_s, **keys):
    """A recovery whose times are short and long beside a run of ``span_s``."""
    keys["detection_s"] = float(rng.choice([0.0, 0.01, 0.1]) * span_s)
    keys["startup_s"] = float(rng.choice([0.0, 0.02, 0.2]) * span_s)
    keys["requests"] = str(rng.choice(["resume", "retry", "lose"]))
    if kind == "elastic":
        keys["regroup_s"] = float(rng.choice([0.0, 0.03]) * span_s)
    return build("recovery", {"kind": kind, **keys}, "test")


def draw_gpu_losses(plan, rng, span_s):
    """GPUs of any pool fail, alone or with others, and some work again."""
    found = []
    for pool, machines in plan.machines.items():
        for _ in range(int(rng.integers(1, 5))):
            gpus = rng.permutation(machines.num_gpus)[: rng.integers(1, 4)]
            gpus = tuple(sorted(gpus.tolist()))
            change = Change(
                float(rng.uniform(0, span_s)), pool, machines.find_replicas(gpus), False, gpus
            )
            found.append(change)
            if rng.random() < 0.7:
                later_s = change.at_s + float(rng.uniform(0, span_s / 2))
                found.append(change._replace(at_s=later_s, starts=True))
    return sorted(found)


def draw_elastic(tiny, seed):
    rng = np.random.default_rng([seed, 11])
    name, split = SPLITS[rng.integers(len(SPLITS))]
    ranks = split["ep"]
    keys = {
        "num_layers": 2,
        "replicas": int(rng.choice([1, 3])),
        "balancing": {"kind": str(rng.choice(BALANCERS))},
        "scheduling": SCHEDULERS[rng.integers(len(SCHEDULERS))]
        | {"token_budget": int(rng.choice([64, 256])), "max_sequences": int(rng.choice([4, 16]))},
        "cluster": "h100-sxm-128",
    }
    num_experts = tiny.plan(name, num_layers=2, **split).placement.model.moe.num_experts
    slots = int(num_experts * rng.choice([1.0, 1.5, 2.0])) // ranks * ranks
    keys["placement"] = {"kind": "eplb", "num_slots": max(slots, num_experts)}
    if rng.random() < 0.25 and "tp" not in split:
        keys["engine"] = str(rng.choice(["vllm", "sglang"]))
        keys["prefill"] = {"parallel": {"tp": 2}, "replicas": int(rng.choice([1, 3]))}
        keys["prefill"] |= {"scheduling": keys["scheduling"]}
    plan = tiny.plan(name, seed=1, **split, **keys)
    trace = tiny.trace(
        int(rng.choice([30, 90])),
        float(rng.choice([400.0, 5000.0])),
        int(rng.choice([60, 700])),
        int(rng.choice([8, 60])),
        seed=int(rng.integers(1000)),
        concurrency=None if rng.random() < 0.7 else int(rng.choice([7, 40])),
    )
    if rng.random() < 0.4:
        most = int((trace.num_input + trace.num_output).max())
        plan = shrink_cache(plan, most, float(rng.uniform(1.0, 3.0)))
    return make_failing(tiny, plan, trace, rng, "elastic"), trace


def make_failing(tiny, plan, trace, rng, kind):
    span_s = float(np.nanmax(tiny.serve(plan, trace).requests_table()["finish_s"]))
    policy = recover(kind, rng, span_s)
    if policy.requests == "retry" and plan.prefill is not None:
        policy = policy.model_copy(update={"requests": "resume"})
    plan = change_plan(plan, recovery=policy)
    if plan.prefill is not None:
        keys = {key: getattr(policy, key) for key in ("detection_s", "startup_s", "requests")}
        restart = build("recovery", {"kind": "restart", **keys}, "test")
        plan = dataclasses.replace(plan, prefill=change_plan(plan.prefill, recovery=restart))
    return with_changes(plan, *draw_gpu_losses(plan, rng, span_s))


def draw_restarting(tiny, seed):
    """Any deployment, whose replicas restart after a while."""
    plan, trace = draw_deployment(tiny, seed)
    return make_failing(tiny, plan, trace, np.random.default_rng([seed, 13]), "restart"), trace


DRAWS = {"elastic": draw_elastic, "restart": draw_restarting}


@seeds(7000, 5, soak=160)
@pytest.mark.parametrize("kind", DRAWS)
def test_every_request_finishes_or_is_lost_and_no_token_comes_twice(tiny, kind, seed):
    plan, trace = DRAWS[kind](tiny, seed)
    served = tiny.serve(plan, trace)
    table = check_outcomes(plan, trace, served)
    if plan.serving.recovery.requests == "lose":
        assert not table["num_retries"].any() or "prefill" in served.pools


@seeds(7000, 10)
@pytest.mark.parametrize("kind", DRAWS)
def test_recoveries_are_the_same_at_every_fidelity(tiny, monkeypatch, kind, seed):
    plan, trace = DRAWS[kind](tiny, seed)
    compiled = tiny.serve(plan, trace)
    simpy = serve_by_events(monkeypatch, plan, trace, tiny.tables)
    check_same_events(compiled, simpy)


@pytest.mark.parametrize("dispatch", ["per_rank", "per_node"])
def test_steps_of_the_ranks_that_are_left_cost_what_these_take(tiny, dispatch):
    """Three of 16 ranks on two nodes are lost, so that nodes are uneven."""
    plan = tiny.plan(
        "moe",
        attention_dp=16,
        ep=16,
        num_layers=2,
        placement={"kind": "eplb", "num_slots": 64},
        dispatch={"kind": dispatch},
    )
    policy = build("recovery", {"kind": "elastic", "detection_s": 0.0, "regroup_s": 0.0}, "test")
    trace = tiny.trace(120, 5000.0, 60, 24)
    change = Change(0.0, "both", (0,), starts=False, gpus=(1, 9, 10))
    plan = with_changes(change_plan(plan, recovery=policy), change)
    means = {}
    for fidelity in ("step", "rank", "message"):
        steps = serve(plan, trace, fidelity).steps_of("both")
        decodes = steps[(steps["prefill_tokens"] == 0) & (steps["decodes"] > 0)]
        means[fidelity] = decodes["duration_s"].sum() / decodes["decode_tokens"].sum()
    assert means["step"] == pytest.approx(means["rank"], rel=0.03)
    assert means["message"] == pytest.approx(means["rank"], rel=0.05)


def test_fewer_ranks_serve_more_slowly_and_a_restart_takes_longest(tiny):
    keys = {"num_layers": 2, "placement": {"kind": "eplb", "num_slots": 64}}
    plan = tiny.plan("moe", attention_dp=8, ep=8, **keys)
    trace = tiny.trace(600, 2000.0, 600, 60)
    whole = serve(plan, trace).requests_table()
    end_s = float(whole["finish_s"].max())

    def lose(kind, *gpus, **keys):
        policy = build("recovery", {"kind": kind, "detection_s": 0.01, **keys}, "test")
        fails = Change(end_s / 4, "both", (0,), False, gpus)
        works = fails._replace(at_s=0.9 * end_s, starts=True)
        served = serve(with_changes(change_plan(plan, recovery=policy), fails, works), trace)
        table = served.requests_table()
        assert (table["outcome"] != "unfinished").all()
        return table

    elastic = {"regroup_s": 0.01, "startup_s": 0.1}
    one, half = lose("elastic", 3, **elastic), lose("elastic", 3, 4, 5, 6, **elastic)
    restarts = lose("restart", 3, startup_s=0.1)
    ends = [table["finish_s"].max() for table in (whole, one, half)]
    assert ends == sorted(ends)
    assert (one["outcome"] == "finished").all()
    assert (restarts["outcome"] == "lost").any()  # nobody is there for those that arrive meanwhile


@seeds(0, 6)
def test_prompts_that_are_computed_again_do_not_wait_for_caches_behind_them(tiny, seed):
    """Small caches: prompts of a lost replica gave up their places in the decode pool, since what
    waits for room there may fill the replica that they go to.
    """
    plan, trace = draw_deployment(tiny, 9515)
    assert plan.prefill is not None
    span_s = float(np.nanmax(tiny.serve(plan, trace).requests_table()["finish_s"]))
    losses = draw_gpu_losses(plan, np.random.default_rng([9515, seed]), span_s)
    outcomes = tiny.serve(with_changes(plan, *losses), trace).requests_table()["outcome"]
    assert set(outcomes) <= {"finished", "lost"}


def test_prompts_that_come_again_may_be_sent_more_often_than_there_are_requests(tiny):
    """Elastic prefill ranks lose prompts whose requests have a turn at the decode pool already."""
    plan, trace = draw_elastic(tiny, 6072)
    outcome = tiny.serve(plan, trace).requests_table()["outcome"]
    assert (outcome != "unfinished").all()
