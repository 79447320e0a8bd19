"""The pieces of a token's time add up to it, and each shrinks with what it stands for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from simulator.config.workload import SLO
from simulator.engine.probe import spread_batch
from simulator.explanation.causes import find_causes
from simulator.explanation.limits import find_limits, list_resources, place_faster, speed_up
from simulator.explanation.sample import SampledStep
from simulator.explanation.trials import Trial
from simulator.explanation.waterfall import make_waterfalls, measure_queue
from simulator.results.explained import LIMITS, PIECES, Changes, Explained
from simulator.results.explanation_text import (
    describe_limits,
    list_limits,
    list_pieces,
    read_explanation,
)
from simulator.results.folder import gather
from simulator.step.prices import Prices

SMALL = {"token_budget": 64, "max_sequences": 8}
CHUNKED = {"kind": "chunked", **SMALL}
PREFILL = {"parallel": {"tp": 2}, "replicas": 1, "scheduling": CHUNKED}
UNIFORM = {"kind": "uniform"}
SPREAD = {"attention_dp": 4, "ep": 4}
OF_EXPERTS = {"experts", "chance", "skew", "links", "busiest_link"}
SENDS = ("links", "busiest_link", "collectives", "latency")


def test_the_front_end_is_no_queue(tiny):
    """A request on an idle deployment waits for nothing."""
    plan, trace = tiny.plan("dense", num_layers=2), tiny.trace(1)
    results = gather({}, pd.DataFrame(), [tiny.run(plan, trace)])
    requests = results.requests[plan.name]
    assert float((requests["scheduled_s"] - requests["arrival_s"]).iloc[0]) > 0
    queue = measure_queue(plan, requests, results.steps[plan.name])
    assert queue.share == pytest.approx(0.0, abs=1e-9)


def explain(tiny, plan, trace, fidelity="step"):
    """The waterfall of each pool, after the laws that hold for all."""
    results = gather({}, pd.DataFrame(), [tiny.run(plan, trace, fidelity)])
    waterfalls = make_waterfalls(plan, results, tiny.folder)
    queue = measure_queue(plan, results.requests[plan.name], results.steps[plan.name])
    explained = Explained(waterfalls, queue, Changes("tpot_p50_s", 0.1, [], 9, []))
    again = read_explanation({"explanation": {"a": dataclasses.asdict(explained)}})["a"]
    assert again == explained
    assert 0 <= explained.queue.share < 1
    for one in explained.waterfalls:
        assert sum(one.pieces.values()) == pytest.approx(one.token_s, rel=1e-9)
        assert min(one.pieces.values()) >= 0
        assert list(one.prompts) == list(one.pieces)
        assert all(0 <= part_s <= one.pieces[name] for name, part_s in one.prompts.items())
        assert one.token == "output" or one.prompts_s == 0
        assert list(one.pieces) == [name for name in PIECES if name in one.pieces]
        assert sum(one.limits.values()) == pytest.approx(1.0, rel=1e-9)
        assert set(one.limits) <= set(LIMITS)
        assert one.limits[one.binding] == max(one.limits.values())
        for resource, saved in one.doubled.items():
            assert 0 <= saved <= 0.5 * one.limits.get(resource, 0.0) + 0.02
        uneven_s = one.pieces.get("chance", 0) + one.pieces.get("skew", 0)
        assert sum(one.layers_s) == pytest.approx(uneven_s, rel=1e-9, abs=1e-15)
        assert not one.ranks or np.mean(one.ranks) == pytest.approx(1.0)
        assert len(list(list_pieces(one))) > 2
        assert len({len(row) for row in list_pieces(one)}) == 1
        assert len(list(list_limits(explained, one))) > 1
        assert all(str(sentence).endswith(".") for sentence in describe_limits(explained, one))
    return explained.waterfalls


def token_s(requests):
    """Seconds from one output token to the next."""
    later = requests[(requests["num_output"] > 1) & (requests["outcome"] == "finished")]
    return (later["finish_s"] - later["first_token_s"]).sum() / (later["num_output"] - 1).sum()


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("dense", {"tp": 2, "replicas": 2}),
        ("moe", {**SPREAD, "routing": {"kind": "lognormal", "sigma": 1.0}}),
        ("moe", {**SPREAD, "overlap": "two_batch"}),
        ("sliding-moe", {"tp": 2, "ep": 2}),
        ("moe", {"pp": 2}),
        ("moe", {"replicas": 2, "attention_dp": 2, "ep": 2, "prefill": PREFILL}),
    ],
)
def test_pieces_add_up(tiny, model, keys, fidelity):
    plan = tiny.plan(model, scheduling=CHUNKED, **keys)
    trace = tiny.trace(num_requests=24, concurrency=None if fidelity == "step" else 6)
    first, *others = explain(tiny, plan, trace, fidelity)
    assert first.token == "output"
    record = tiny.run(plan, trace, fidelity)
    assert first.token_s == pytest.approx(token_s(record.requests), rel=1e-7)
    assert [one.token for one in others] == ["prompt"] * ("prefill" in keys)
    for one in others:
        own = record.steps[record.steps["pool"] == "prefill"]
        per_token_s = own["duration_s"].sum() / own["prefill_tokens"].sum()
        assert one.token_s == pytest.approx(per_token_s, rel=1e-9)


def test_a_dense_model_has_no_pieces_of_experts(tiny):
    (found,) = explain(tiny, tiny.plan("dense", tp=2), tiny.trace(20))
    assert not OF_EXPERTS & set(found.pieces)
    assert found.pieces["collectives"] > 0
    assert not found.layers_s


def test_one_gpu_exchanges_nothing(tiny):
    (found,) = explain(tiny, tiny.plan("moe"), tiny.trace(20))
    assert {name: found.pieces[name] for name in SENDS} == dict.fromkeys(SENDS, 0.0)
    for name in ("chance", "skew"):
        assert found.pieces[name] == pytest.approx(0.0, abs=1e-18)


def test_uneven_experts_are_chance_where_routing_is_uniform_and_skew_where_it_is_not(tiny):
    found = {}
    for sigma in (0.0, 0.7, 1.4):
        routing = {"kind": "lognormal", "sigma": sigma} if sigma else UNIFORM
        plan = tiny.plan("moe", **SPREAD, routing=routing)
        found[sigma] = _causes(plan, 4000)
    skew_s = {sigma: one.uneven_s - one.chance_s for sigma, one in found.items()}
    assert skew_s[0.0] < 0.1 * skew_s[0.7]
    assert skew_s[0.7] < skew_s[1.4]
    assert found[1.4].chance_s == pytest.approx(found[0.7].chance_s, rel=0.3)


def _causes(plan, prompts, decodes=0):
    batch = spread_batch(plan, prompts, decodes, 100)
    prices = Prices(plan.placement, int(batch.tokens_d.max()))
    return find_causes(prices, batch, 0, np.random.default_rng(1))


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_faster_links_shorten_what_links_take_and_leave_latency(tiny, overlap):
    keys = {**SPREAD, "cluster": "h100-sxm-16", "overlap": overlap}
    slow, fast = (
        _causes(tiny.plan("moe", **keys, network_speed=speed), 4000) for speed in (0.001, 0.002)
    )
    assert fast.exchanges.links_s < slow.exchanges.links_s
    if overlap == "none":
        assert fast.exchanges.latency_s == pytest.approx(slow.exchanges.latency_s, rel=1e-6)
        assert slow.hidden_s == 0
    else:
        assert slow.hidden_s > 0
    assert fast.uneven_s == pytest.approx(slow.uneven_s, rel=0.01)


def test_few_rows_wait_for_memory_and_many_for_arithmetic(tiny):
    plan = tiny.plan("dense")
    faster = {name: one for name, (one,) in place_faster(plan, tiny.folder).items()}

    def limits_of(prompts, decodes):
        batch = spread_batch(plan, prompts, decodes, 5000)
        step = SampledStep(batch, None, 0.0, 1.0)
        return find_limits(plan.placement, faster, step, {"attention": 0.5, "dense": 0.5}).shares

    decode, prefill = limits_of(0, 200), limits_of(8000, 0)
    for limits in (decode, prefill):
        assert sum(limits.values()) == pytest.approx(1.0)
    assert decode["memory"] > decode["arithmetic"]
    assert prefill["arithmetic"] > prefill["memory"]


def test_prompts_that_go_first_are_a_piece_of_their_own(tiny):
    plan = tiny.plan("dense", scheduling={"kind": "prefill_first", **SMALL})
    trace = tiny.trace(60, 4000.0)
    (found,) = explain(tiny, plan, trace)
    results = gather({}, pd.DataFrame(), [tiny.run(plan, trace)])
    own = results.frame("token_time").set_index("kind")["token_s"]
    assert found.prompts_s == pytest.approx(own["prefill"], rel=1e-9)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("dense", {"tp": 4, "network_speed": 0.5}),
        ("moe", {**SPREAD, "network_speed": 0.02}),
        ("moe", {**SPREAD, "network_speed": 0.02, "overlap": "two_batch"}),
        ("latent-moe", {"tp": 2, **SPREAD, "network_speed": 0.05}),
        ("moe", {**SPREAD, "network_speed": 0.02, "scheduling": "prefill_first"}),
    ],
)
def test_in_a_closed_loop_a_resource_twice_as_fast_saves_what_its_limit_says(tiny, model, keys):
    """No queue makes more of it: at most half of the share, and as much as in the same steps."""
    kind = keys.get("scheduling", "chunked")
    steps = {"kind": kind, "token_budget": 512, "max_sequences": 16}
    usual = {**keys, "scheduling": steps, "speeds": {"engine": 30.0}}
    trace = tiny.trace(120, concurrency=12)
    lengths = {"num_input": 900, "num_output": 20}
    trace = dataclasses.replace(
        trace, **{name: np.full_like(trace.num_input, value) for name, value in lengths.items()}
    )
    plan = tiny.plan(model, **usual)
    (found,) = explain(tiny, plan, trace)
    assert found.prompts_s > 0.1 * found.token_s
    for resource in list_resources(plan):
        key, value = speed_up(plan.spec, resource, 2.0)
        table, _, name = key.rpartition(".")
        faster = {table: {**usual["speeds"], name: value}} if table else {key: value}
        requests = tiny.run(tiny.plan(model, **{**usual, **faster}), trace).requests
        saved = 1 - token_s(requests) / found.token_s
        assert saved == pytest.approx(found.doubled[resource], abs=0.02)
        assert saved < found.limits[resource] / 2 + 0.02


def test_what_prompts_take_longer_is_divided_by_the_causes_of_all_else(tiny):
    """Slow links are found in the prompts that they carry, and so is arithmetic."""
    keys = {**SPREAD, "scheduling": {"kind": "chunked", "token_budget": 512, "max_sequences": 16}}
    trace = tiny.trace(60, concurrency=12)
    trace = dataclasses.replace(trace, num_input=np.full_like(trace.num_input, 900))
    (fast,) = explain(tiny, tiny.plan("moe", **keys), trace)
    (slow,) = explain(tiny, tiny.plan("moe", **keys, network_speed=0.005), trace)
    wires = ("links", "busiest_link")
    added_s = sum(slow.prompts[name] - fast.prompts[name] for name in wires)
    assert added_s > 0.8 * (slow.prompts_s - fast.prompts_s) > 0
    for name in ("attention", "experts"):
        assert slow.prompts[name] == pytest.approx(fast.prompts[name], rel=0.25)


def test_first_tokens_only_are_explained_by_their_prompts(tiny):
    trace = tiny.trace(5, 1000.0)
    trace = dataclasses.replace(trace, num_output=np.ones_like(trace.num_output))
    (found,) = explain(tiny, tiny.plan("dense"), trace)
    assert found.token == "prompt"
    assert found.prompts_s == 0


def test_steps_that_failures_cut_off_are_a_piece_of_their_own(tiny):
    trace = tiny.trace(24, 4000.0)
    keys = {"replicas": 3, "scheduling": CHUNKED}
    end_s = float(tiny.run(tiny.plan("dense", **keys), trace).requests["finish_s"].max())
    losses = [{"kind": "kill", "at_s": end_s / 3, "gpu": 0}]
    (found,) = explain(tiny, tiny.plan("dense", **keys, failures=losses), trace)
    assert found.pieces["stops"] > 0


def test_slower_gpus_are_a_piece_of_their_own_and_the_others_stay(tiny):
    trace, keys = tiny.trace(16, 100.0), {**SPREAD, "scheduling": CHUNKED}
    (usual,) = explain(tiny, tiny.plan("moe", **keys), trace)
    slower = [{"gpu": 2, "compute": 0.3}]
    (found,) = explain(tiny, tiny.plan("moe", **keys, replicas=1, degraded=slower), trace)
    assert usual.pieces["slow_gpus"] == usual.pieces["slow_wires"] == 0
    assert found.pieces["slow_gpus"] > 0.1 * found.token_s
    assert found.pieces["slow_wires"] == 0
    assert found.token_s > usual.token_s
    assert found.pieces["attention"] == pytest.approx(usual.pieces["attention"], rel=0.3)


@pytest.mark.parametrize(
    "slower",
    [
        {"gpu": 2, "compute": 0.3},
        {"gpu": 2, "scale_up": 0.003},
        {"gpu": 2, "compute": 0.3, "at_s": 0.2, "for_s": 0.3},
        {"gpu": 2, "compute": 0.3, "scale_up": 0.003},
    ],
    ids=["gpu", "wires", "for a while", "both"],
)
def test_what_one_replica_of_four_loses_is_what_a_run_at_full_speed_saves(tiny, slower):
    trace, keys = tiny.trace(200, 800.0), {**SPREAD, "replicas": 4, "scheduling": CHUNKED}
    (usual,) = explain(tiny, tiny.plan("moe", **keys), trace)
    (found,) = explain(tiny, tiny.plan("moe", **keys, degraded=[slower]), trace)
    saved = 1 - usual.token_s / found.token_s
    assert saved > 0.025
    pieces = [found.pieces[name] for name in ("slow_gpus", "slow_wires")]
    assert sum(pieces) / found.token_s == pytest.approx(saved, abs=0.015)
    assert [piece > 0 for piece in pieces] == ["compute" in slower, "scale_up" in slower]
    assert sum(found.pieces.values()) == pytest.approx(found.token_s, rel=1e-9)


@pytest.mark.parametrize(
    ("rate", "concurrency", "slo", "metric"),
    [
        (1.0, None, {}, "tpot_p50_s"),
        (1e6, None, {}, "output_tokens_per_s"),
        (1.0, 4, {}, "output_tokens_per_s"),
        (1e6, None, {"ttft_s": 0.5}, "goodput_per_s"),
        (1e6, None, {"ttft_s": 1e-6}, "output_tokens_per_s"),
        (1.0, None, {"ttft_s": 10.0}, "tpot_p50_s"),
    ],
)
def test_changes_are_ranked_by_what_the_deployment_decides(tiny, rate, concurrency, slo, metric):
    plan = tiny.plan(
        "dense", scheduling={"kind": "chunked", "token_budget": 64, "max_sequences": 2}
    )
    trace = tiny.trace(60, rate, concurrency=concurrency)
    trial = Trial(plan, trace, SLO(**slo), 1, "step")
    assert trial.choose_metric() == metric
