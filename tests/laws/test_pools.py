"""Prefill and decode in pools of their own: links cost what they carry."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from simulator import load_scenario, run
from simulator.base.errors import UserError
from simulator.config.workload import SLO
from simulator.deployment.facts import facts_of
from simulator.engine.timeline import run_plan
from simulator.results.metrics import summarise
from simulator.workload.traces import RequestTrace
from tests.single_steps import take_apart

ENGINES = ("vllm", "sglang", "trtllm")
SPLITS = {
    "dense": ("dense", {"tp": 2}, {"tp": 1}),
    "experts": ("moe", {"attention_dp": 4, "ep": 4}, {"attention_dp": 2, "ep": 2}),
    "latent attention": ("latent-moe", {"attention_dp": 4, "ep": 4}, {"tp": 2}),
    "recurrent hybrid": ("state-moe", {"attention_dp": 2, "ep": 2}, {"tp": 2}),
    "windows": ("sliding-dense", {"tp": 2}, {"tp": 2}),
}


def pooled(tiny, split="experts", replicas=1, prefill_replicas=1, **keys):
    model, decode, prompts = SPLITS[split]
    deployment = {
        key: keys.pop(key)
        for key in list(keys)
        if key in ("cluster", "balancing", "prefix_caching", "kv_dtype", "engine")
    }
    prefill = {"parallel": prompts, "replicas": prefill_replicas, **keys}
    return tiny.plan(model, replicas=replicas, prefill=prefill, **decode, **deployment)


def closed(trace, concurrency):
    return dataclasses.replace(
        trace, concurrency=concurrency, arrival_s=np.zeros(trace.num_requests)
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_token_of_a_prompt_that_is_computed_again_is_no_lost_work(tiny, split):
    plan = pooled(tiny, split)
    record = tiny.run(plan, tiny.trace(30))
    assert not record.requests["num_preemptions"].any()
    assert summarise([plan], [record], SLO())["recomputed_share"].iloc[0] == pytest.approx(0.0)


@pytest.mark.parametrize("split", SPLITS)
def test_a_transfer_carries_exactly_the_cache_of_the_prompt(tiny, split):
    plan = pooled(tiny, split)
    trace = tiny.trace(30)
    requests = tiny.run(plan, trace).requests
    cache, tp = plan.serving.capacity.cache, plan.placement.layout.tp
    goes_on = (trace.num_output > 1) | plan.transfer.recomputes_last
    expected = np.where(
        goes_on, (cache.bytes_per_token * trace.num_input + cache.bytes_per_sequence) * tp, 0.0
    )
    assert requests["transfer_bytes"].to_numpy() == pytest.approx(expected)


def one(num_input, num_output):
    return RequestTrace(
        np.zeros(1), np.array([num_input]), np.array([num_output]), provenance="one"
    )


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("split", ["dense", "experts"])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_request_alone_takes_its_prompt_its_transfer_and_its_decodes(
    tiny, split, fidelity, engine
):
    """Its first token waits for what the engine's sources explain, and for nothing else."""
    plan = pooled(tiny, split, engine=engine)
    record = tiny.run(plan, one(500, 9), fidelity)
    requests, steps = record.requests.iloc[0], take_apart(record.steps)
    ingress_delay_s = plan.prefill.placement.calibration.engine.first_token_s
    prompt_s = steps["duration_s"][steps["pool"] == "prefill"].sum()
    decodes = steps["duration_s"][steps["pool"] == "decode"].to_numpy()
    assert len(decodes) == (9 if engine == "vllm" else 8)
    cache = plan.serving.capacity.cache.bytes_for(500)
    assert plan.transfer.wire == "scale_up"
    send_s = cache * plan.placement.layout.tp / plan.prefill.placement.layout.tp / (450e9 * 0.7)
    moved_s = max(send_s, cache / (450e9 * 0.7)) + plan.placement.cluster.scale_up.latency_s
    moved_s += {"vllm": 0.039, "sglang": 0.0045, "trtllm": 0.0152}[engine]
    assert requests["transfer_s"] == pytest.approx(moved_s)
    first_s = ingress_delay_s + prompt_s + moved_s + (decodes[0] if engine == "vllm" else 0.0)
    assert requests["first_token_s"] == pytest.approx(first_s)
    assert requests["finish_s"] == pytest.approx(
        ingress_delay_s + prompt_s + moved_s + decodes.sum()
    )


def test_faster_wires_never_slow_a_run_down(tiny):
    """No cache comes later and no request alone ends later; of many, other batches may end a per
    cent later, as on any scheduler.
    """
    plan = pooled(tiny, "dense", cluster="h100-sxm-16", prefill_replicas=2, handshake_s=0.0)
    trace = tiny.trace(40, longest_input=3000)
    runs, alone_s = [], []
    for bytes_per_s in (1e8, 1e9, 1e10, math.inf):
        changed = dataclasses.replace(
            plan, transfer=dataclasses.replace(plan.transfer, peak_bytes_per_s=bytes_per_s)
        )
        runs.append(run_plan(changed, trace).requests)
        alone_s.append(run_plan(changed, one(2000, 5)).requests["finish_s"][0])
    assert alone_s == sorted(alone_s, reverse=True)
    for slower, faster in itertools.pairwise(runs):
        prompts = [run["arrival_s"] for run in (faster, slower)]
        assert (prompts[0] == prompts[1]).all()
        assert (faster["transfer_s"] <= slower["transfer_s"] + 1e-12).all()
        assert faster["finish_s"].mean() <= slower["finish_s"].mean() * 1.01
    assert runs[-1]["transfer_s"].max() == pytest.approx(plan.transfer.latency_s)


def test_layer_by_layer_leaves_the_last_layer_or_what_the_wires_could_not_carry(tiny):
    keys = {"handshake_s": 0.0, "engine": "sglang"}
    late, early = (
        pooled(tiny, "dense", layerwise=layerwise, **keys) for layerwise in (False, True)
    )
    by_plan = [run_plan(plan, one(500, 4)).requests["transfer_s"].iloc[0] for plan in (late, early)]
    latency_s = late.transfer.latency_s
    assert by_plan[1] - latency_s == pytest.approx(
        (by_plan[0] - latency_s) / late.placement.model.num_layers
    )
    slow = dataclasses.replace(
        early, transfer=dataclasses.replace(early.transfer, peak_bytes_per_s=1e6 / 0.7)
    )
    requests = run_plan(slow, one(500, 4)).requests.iloc[0]
    # Its first token is shown when the cache is there.
    computing_s = requests["first_token_s"] - requests["transfer_s"] - requests["scheduled_s"]
    assert requests["transfer_s"] == pytest.approx(
        slow.transfer.send_s(500) - computing_s + latency_s
    )


@pytest.mark.parametrize("concurrency", [None, 8])
def test_ranks_confirm_the_tables(tiny, concurrency):
    plan = pooled(tiny, "experts")
    trace = (
        closed(tiny.trace(30), concurrency) if concurrency else tiny.trace(30, rate_per_s=40_000)
    )
    ends = [
        tiny.run(plan, trace, fidelity).requests["finish_s"].max() for fidelity in ("step", "rank")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_gpus_cost_and_facts_count_both_pools(tiny):
    plan = pooled(tiny, "experts", replicas=2, prefill_replicas=3, cluster="h100-sxm-16")
    assert plan.num_gpus == 2 * 4 + 3 * 2
    record = run_plan(plan, tiny.trace(40))
    summary = summarise([plan], [record], SLO()).iloc[0]
    assert summary["num_gpus"] == 14
    hours = summary["duration_s"] / 3600
    cost = (
        14
        * plan.placement.cluster.price_per_gpu_hour
        * hours
        / record.requests["num_output"].sum()
        * 1e6
    )
    assert summary["cost_per_million_output_tokens"] == pytest.approx(cost)
    assert all(0 < summary[name] <= 1 for name in ("utilisation", "mfu", "mbu"))
    facts = facts_of(plan)
    assert facts["replicas"] == 5
    assert "prefill" in facts["layout"]
    assert any(row["what"] == "KV cache transfers" for row in facts["assumptions"])
    assert set(record.spans["phase"]) == {"prefill", "decode"}


def test_the_decode_pool_fills_what_the_prefill_pool_leaves(tiny):
    plan = tiny.plan(
        "moe", replicas=None, attention_dp=4, ep=4, prefill={"parallel": {"tp": 2}, "replicas": 3}
    )
    assert (plan.serving.replicas, plan.transfer.wire) == (2, "scale_out")
    elsewhere = {"parallel": {"tp": 2}, "replicas": 3, "cluster": "h200-sxm-8"}
    plan = tiny.plan("moe", replicas=None, attention_dp=4, ep=4, prefill=elsewhere)
    assert (plan.serving.replicas, plan.prefill.placement.cluster.name, plan.transfer.wire) == (
        4,
        "h200-sxm-8",
        "scale_out",
    )
    with pytest.raises(UserError, match="besides 8 for prefill"):
        tiny.plan(
            "moe", replicas=3, attention_dp=4, ep=4, prefill={"parallel": {"tp": 4}, "replicas": 2}
        )
    with pytest.raises(UserError, match=r"\[prefill\].*tp \(3\)"):
        tiny.plan("moe", prefill={"parallel": {"tp": 3}})


def test_copies_of_experts_are_of_the_decode_pool_only_where_prompts_split_experts(tiny):
    """Experts that are split like dense blocks have no slots for copies, whatever the decode pool
    has.
    """
    keys = {"attention_dp": 4, "ep": 4, "prefill": {"parallel": {"tp": 4}}}
    plain, copying = (
        tiny.plan("moe", **keys, placement=placement)
        for placement in ({"kind": "contiguous"}, {"kind": "eplb", "num_slots": 20})
    )
    assert copying.serving.capacity.weights_bytes > plain.serving.capacity.weights_bytes
    assert (
        copying.prefill.serving.capacity.weights_bytes
        == plain.prefill.serving.capacity.weights_bytes
    )


def test_a_retracted_request_whose_last_token_is_on_the_way_is_served():
    """SGLang drops the token and computes it again. One of 500 requests was in no queue
    any more.
    """
    lengths = {
        "kind": "lognormal",
        "input": {"p50": 300.0, "sigma": 0.8, "max": 4000},
        "output": {"p50": 900.0, "sigma": 0.8, "max": 4000},
    }
    requests = {
        "num_requests": 500,
        "arrivals": {"kind": "poisson", "rate_per_s": 300.0},
        "lengths": lengths,
    }
    deployment = {
        "name": "sglang",
        "model": "llama-3.1-8b",
        "cluster": "h100-sxm-2",
        "engine": "sglang",
        "memory_fraction": 0.22,
        "prefill": {"replicas": 1},
    }
    table = {"seed": 5, "workload": {"requests": requests}, "deployments": [deployment]}
    (row,) = run(load_scenario(table)).summary.itertuples()
    assert (row.num_requests, row.num_lost) == (500, 0)
    assert row.num_preemptions > 50
