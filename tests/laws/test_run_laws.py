"""Whole runs where a defect would hide: between two ways to run them, at full ranks, among
many replicas.
"""

import dataclasses

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.config.workload import SLO
from simulator.engine.timeline import run_plan
from simulator.results.metrics import summarise
from tests.parts import change_plan
from tests.single_steps import take_apart


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("kind", plugins.available("balancing"))
def test_requests_of_one_instant_are_spread_by_whoever_looks_at_load(tiny, kind, fidelity):
    """Most arrive while a step runs, so they are at no rank yet: they must count all the same."""
    trace = tiny.trace(32, longest_input=300, longest_output=8)
    trace = dataclasses.replace(trace, arrival_s=np.where(np.arange(32) < 4, 0.0, 1e-5))
    plan = tiny.plan("dense", replicas=4, balancing={"kind": kind})
    counts = run_plan(plan, trace, fidelity).requests["replica"].value_counts()
    assert len(counts) == 4
    if plan.serving.balancing.needs_load:
        assert counts.max() <= 14


@pytest.mark.parametrize("split", [{"tp": 2}, {"tp": 4}])
def test_every_output_token_reads_one_more_from_the_cache(tiny, split):
    """Weights are read as often as there are steps; of the cache each step reads a token more."""
    plan, trace = tiny.plan("dense", **split), tiny.trace(1)
    before, once, twice = (
        run_plan(plan, dataclasses.replace(trace, num_output=np.array([number]))).read_bytes
        for number in (5, 6, 7)
    )
    token_bytes = plan.serving.capacity.cache.bytes_per_token * plan.placement.layout.num_gpus
    assert (twice - once) - (once - before) == pytest.approx(token_bytes, rel=1e-6)


def test_a_balancer_is_told_of_all_that_is_unfinished(tiny):
    """Requests that a step under way has not looked at yet included."""
    seen = []

    class Asked:
        needs_load = True

        def prepare(self, num_replicas, rng):
            return self

        def choose(self, request, snapshot):
            seen.append((snapshot.outstanding.sum(), snapshot.outstanding_tokens.sum()))
            return int(snapshot.outstanding.argmin())

    plan = change_plan(tiny.plan("dense", replicas=2), balancing=Asked())
    trace = tiny.trace(30, 3000.0)
    requests = run_plan(plan, trace).requests
    ingress_delay_s = plan.placement.calibration.engine.first_token_s
    for number, (count, tokens) in enumerate(seen):
        before = requests.iloc[:number]
        unfinished = before[before["finish_s"] > trace.arrival_s[number] + ingress_delay_s]
        assert count == len(unfinished)
        assert tokens == (unfinished["num_input"] + unfinished["num_output"]).sum()
    shortest = tiny.plan("dense", replicas=2, balancing={"kind": "least_outstanding"})
    assert requests.equals(run_plan(shortest, trace).requests)


@pytest.mark.parametrize("model", ["dense", "moe"])
def test_a_lead_in_is_served_as_before_and_not_judged(tiny, model):
    """What requests get is of those that come later, by hand; what machines do is of the run."""
    plan, trace = tiny.plan(model, replicas=2), tiny.trace(120, 3000.0)
    begin_s = float(trace.arrival_s[50])
    whole = run_plan(plan, trace)
    led = run_plan(plan, dataclasses.replace(trace, judge_from_s=begin_s))
    assert led.requests.equals(whole.requests)
    later = whole.requests[whole.requests["arrival_s"] >= begin_s]
    ttft_s = later["first_token_s"] - later["arrival_s"] + later["stream_s"]
    e2e_s = later["finish_s"] - later["arrival_s"] + later["stream_s"]
    slo = SLO(ttft_s=float(ttft_s.median()))
    judged, all_judged = (summarise([plan], [one], slo).iloc[0] for one in (led, whole))
    assert judged["num_requests"] == len(later) == 70
    assert judged["slo_attainment"] == np.mean(ttft_s <= ttft_s.median())
    for level in (50, 90, 99):
        assert judged[f"ttft_p{level}_s"] == np.quantile(ttft_s, level / 100)
        assert judged[f"e2e_p{level}_s"] == np.quantile(e2e_s, level / 100)
    of_machines = ["duration_s", "utilisation", "itl_p50_s", "mfu", "mbu", "kv_used_max"]
    assert judged[of_machines].equals(all_judged[of_machines])


@pytest.mark.parametrize("judge_from_s", [0.0, 0.05])
def test_equal_arrivals_in_time_are_equal_goodput_however_long_the_last_request_takes(
    tiny, judge_from_s
):
    trace = tiny.trace(300, 1000.0, longest_output=12)
    trace = dataclasses.replace(trace, judge_from_s=judge_from_s)
    trace.num_output[-1] = 400
    rows = [
        summarise([plan], [run_plan(plan, trace)], SLO(e2e_s=100.0)).iloc[0]
        for plan in (tiny.plan("dense", replicas=4), tiny.plan("moe", attention_dp=4, ep=4))
    ]
    assert rows[0]["duration_s"] != rows[1]["duration_s"]
    later_s = trace.arrival_s[trace.arrival_s >= judge_from_s]
    for row in rows:
        assert row["slo_attainment"] == 1.0
        assert row["goodput_per_s"] == len(later_s) / (later_s[-1] - later_s[0])


def test_a_run_leaves_its_trace_as_it_was(tiny):
    trace = tiny.trace(20, concurrency=4)
    before = trace.arrival_s.copy()
    run_plan(tiny.plan("dense"), trace)
    assert np.array_equal(trace.arrival_s, before)


def test_every_full_data_parallel_rank_can_be_looked_into(tiny):
    """9 + 7 tokens over 2 full ranks: rounding both up on one rank would ask for a batch that no
    step has.
    """
    plan = tiny.plan(
        "moe",
        attention_dp=2,
        ep=2,
        scheduling={"kind": "chunked", "token_budget": 9, "max_sequences": 9},
    )
    record = run_plan(plan, tiny.trace(60, 1e5, longest_input=60, longest_output=30))
    steps = take_apart(record.steps)
    assert (steps["prefill_tokens"] + steps["decode_tokens"]).max() == 18
    assert set(record.spans["phase"]) == {"prefill", "decode"}


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("kind", plugins.available("scheduling"))
def test_a_tiny_budget_or_a_prompt_far_beyond_it_still_ends(tiny, kind, budget):
    chunked = {"chunked_prompts": True} if kind == "no_evict" else {}
    scheduling = {"kind": kind, "token_budget": budget, "max_sequences": 3, **chunked}
    plan = tiny.plan("moe", scheduling=scheduling)
    record = run_plan(plan, tiny.trace(5, longest_input=40, longest_output=4))
    assert np.isfinite(record.steps["duration_s"]).all()
    assert (record.steps["duration_s"] > 0).all()


@pytest.mark.parametrize(
    ("model", "shares"),
    [("dense", True), ("sliding-dense", True), ("windows-only", False), ("state-moe", False)],
)
def test_prefixes_are_shared_where_the_cache_grows_and_all_blocks_are_counted(tiny, model, shares):
    trace = tiny.trace(20, 50.0, longest_input=600, longest_output=4)
    counts = -(-trace.num_input // 64)
    trace = dataclasses.replace(
        trace,
        prefix_block_tokens=64,
        prefix_starts=np.concatenate([[0], np.cumsum(counts)]),
        prefix_ids=np.concatenate([np.arange(count) for count in counts]),
    )
    record = run_plan(tiny.plan(model), trace)
    assert (record.requests["num_cached"] < record.requests["num_input"]).all()
    assert record.steps["kv_used"].between(0, 1).all()
    assert (record.requests["num_cached"].sum() > 0) == shares


def test_a_request_that_can_never_fit_is_refused_with_both_numbers(tiny):
    plan = tiny.with_blocks(tiny.plan("dense"), 10)
    trace = dataclasses.replace(tiny.trace(1), num_input=np.array([150]), num_output=np.array([11]))
    with pytest.raises(UserError, match=r"161 tokens.*holds 160 "):
        run_plan(plan, trace)
