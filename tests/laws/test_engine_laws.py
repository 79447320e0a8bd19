"""Whatever the deployment: nothing is lost, time goes forward, a seed says everything, and better
hardware is no slower.
"""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

import simulator
from simulator.engine.timeline import run_plan
from simulator.results.metrics import latencies
from simulator.workload.traces import take_requests

ROUNDING_S = 1e-12
"""A request comes when another has gone, but for the last digit: each is reckoned from its own way
to the engine."""
FRAMES = ("requests", "steps", "ranks", "experts", "traffic", "spans")


def check(record, trace):
    requests = record.requests
    assert requests["request"].tolist() == list(range(trace.num_requests))
    assert requests["num_input"].tolist() == trace.num_input.tolist()
    assert requests["num_output"].tolist() == trace.num_output.tolist()
    assert (requests["arrival_s"] <= requests["scheduled_s"]).all()
    assert (requests["scheduled_s"] < requests["first_token_s"]).all()
    assert (requests["first_token_s"] <= requests["finish_s"]).all()
    assert record.itl.counts.sum() == (trace.num_output - 1).sum()
    assert (
        requests["num_preemptions"].sum() > 0
        or record.steps["prefill_tokens"].sum() == trace.num_input.sum()
    )
    assert record.steps["decode_tokens"].sum() == (trace.num_output - 1).sum()
    for _, steps in record.steps.groupby("replica"):
        ends = (steps["start_s"] + steps["duration_s"]).to_numpy()
        assert (steps["start_s"].to_numpy()[1:] >= ends[:-1] - 1e-9).all()


def cut(trace, **changes):
    return dataclasses.replace(trace, **{key: np.asarray(value) for key, value in changes.items()})


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("moe", {"attention_dp": 4, "ep": 4}),
        ("dense", {"tp": 2}),
        ("state-moe", {"tp": 2, "ep": 2}),
    ],
)
def test_every_request_is_served_once_and_in_order(tiny, name, split, fidelity):
    trace = tiny.trace()
    check(tiny.run(tiny.plan(name, replicas=2, **split), trace, fidelity), trace)


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize(
    "change", ["one request", "one token", "all at once", "a long gap", "few requests"]
)
def test_edges(tiny, change, fidelity):
    trace = tiny.trace(num_requests={"one request": 1, "few requests": 2}.get(change, 12))
    if change == "one token":
        trace = cut(trace, num_output=np.ones(12, dtype=np.int64))
    if change == "all at once":
        trace = cut(trace, arrival_s=np.zeros(12))
    if change == "a long gap":
        trace = cut(trace, arrival_s=trace.arrival_s + np.where(np.arange(12) >= 6, 1e6, 0.0))
    split = {"attention_dp": 4, "ep": 4} if fidelity == "rank" else {"tp": 2, "attention_dp": 2}
    check(tiny.run(tiny.plan("moe", **split, replicas=3), trace, fidelity), trace)


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("concurrency", [1, 5, 1000])
def test_a_closed_loop_keeps_so_many_in_flight(tiny, fidelity, concurrency):
    trace = tiny.trace(num_requests=20, concurrency=concurrency)
    record = tiny.run(tiny.plan("moe", tp=2, ep=2), trace, fidelity)
    check(record, trace)
    starts, ends = record.requests["arrival_s"].to_numpy(), record.requests["finish_s"].to_numpy()
    assert max(
        ((starts <= moment) & (ends > moment + ROUNDING_S)).sum() for moment in starts
    ) == min(concurrency, 20)


def test_round_robin_replicas_serve_what_each_would_serve_alone(tiny):
    trace = tiny.trace()
    both = tiny.run(
        tiny.plan("moe", tp=2, ep=2, replicas=2, balancing={"kind": "round_robin"}), trace
    ).requests
    for replica in range(2):
        half = cut(
            trace,
            **{
                key: getattr(trace, key)[replica::2]
                for key in ("arrival_s", "num_input", "num_output")
            },
        )
        alone = tiny.run(tiny.plan("moe", tp=2, ep=2), half).requests
        shared = both[both["replica"] == replica].reset_index(drop=True)
        times = ["scheduled_s", "first_token_s", "finish_s"]
        pd.testing.assert_frame_equal(shared[times], alone[times], check_exact=True)


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_a_seed_says_everything(tiny, fidelity):
    trace = tiny.trace(num_requests=20)
    first, again = (
        run_plan(tiny.plan("moe", tp=2, ep=2, seed=5), trace, fidelity) for _ in range(2)
    )
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(first, name), getattr(again, name), check_exact=True)
    other = run_plan(tiny.plan("moe", tp=2, ep=2, seed=6), trace, fidelity)
    assert not first.steps.equals(other.steps)


def faster(plan, tiny, what):
    cluster, accelerator = plan.placement.cluster, plan.placement.accelerator
    if what == "links":
        wire = cluster.scale_up.model_copy(update={"bytes_per_s": cluster.scale_up.bytes_per_s * 2})
        return tiny.on(plan, cluster=cluster.model_copy(update={"scale_up": wire}))
    keys = ["memory_bytes_per_s"] if what == "memory" else ["bf16_flops_per_s", "fp8_flops_per_s"]
    return tiny.on(
        plan,
        accelerator=accelerator.model_copy(
            update={key: getattr(accelerator, key) * 2 for key in keys}
        ),
    )


@pytest.mark.parametrize("split", [{"attention_dp": 2, "ep": 2}, {"tp": 4}])
def test_better_hardware_is_never_slower(tiny, split):
    trace = dataclasses.replace(tiny.trace(), arrival_s=np.zeros(40))
    plan = tiny.plan("moe", **split)
    before = run_plan(plan, trace)
    for what in ("links", "memory", "FLOPs"):
        after = run_plan(faster(plan, tiny, what), trace)
        assert len(before.steps) == len(after.steps)
        assert (after.steps["duration_s"] <= before.steps["duration_s"] * (1 + 1e-9)).all(), what
        assert after.requests["finish_s"].max() < before.requests["finish_s"].max(), what


def test_fewer_requests_a_second_never_wait_much_longer(tiny):
    trace, plan = tiny.trace(rate_per_s=4000), tiny.plan("moe", tp=2, ep=2)
    waits = []
    for stretch in (1, 2, 4, 8, 16):
        record = tiny.run(plan, dataclasses.replace(trace, arrival_s=trace.arrival_s * stretch))
        waits.append(latencies(record.requests)["ttft_s"].mean())
    # A request may just miss a step and wait for its end: 5 %.
    assert all(later <= sooner * 1.05 for sooner, later in itertools.pairwise(waits))


def starts_of(record):
    return record.requests["arrival_s"].to_numpy()


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_clients_of_a_closed_loop_send_one_after_another(tiny, fidelity):
    trace = dataclasses.replace(tiny.trace(num_requests=60, concurrency=12), send_s=0.001)
    record = tiny.run(tiny.plan("moe", tp=2, ep=2, replicas=2), trace, fidelity)
    check(record, trace)
    starts, ends = starts_of(record), np.sort(record.requests["finish_s"].to_numpy())
    np.testing.assert_allclose(starts[:12], 0.001 * np.arange(12), rtol=1e-12)
    assert np.diff(starts).min() > 0.001 - 1e-9
    # The client that is free the longest sends first, as soon as the one before has sent.
    expected = starts[11]
    for start, end in zip(starts[12:], ends, strict=False):
        expected = max(expected, end) + 0.001
        assert start == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_spread_start_begins_over_the_mean_stay_of_a_crowd(tiny, name):
    plan, trace = tiny.plan(name, tp=2), tiny.trace(num_requests=60, concurrency=12)
    crowd = take_requests(trace, np.arange(12))
    stays = tiny.run(plan, crowd).requests
    stay_s = (stays["finish_s"] - stays["arrival_s"]).mean()
    record = tiny.run(plan, dataclasses.replace(trace, start="spread"))
    check(record, trace)
    starts, ends = starts_of(record), record.requests["finish_s"].to_numpy()
    assert (np.diff(starts) >= 0).all()
    free = np.sort(np.concatenate([stay_s / 12 * np.arange(12), ends]))
    np.testing.assert_allclose(starts, free[:60], rtol=1e-9)


def test_equal_requests_that_begin_together_wait_for_each_other():
    """In lockstep all prompts come at once, round after round; spread they do not."""

    def run(**loop):
        arrivals = {"kind": "closed_loop", "concurrency": 24, **loop}
        lengths = {"kind": "fixed", "num_input": 2000, "num_output": 60}
        requests = {"arrivals": arrivals, "lengths": lengths}
        dense = {"name": "it", "model": "qwen3-8b", "cluster": "h100-sxm-1", "engine": "vllm"}
        workload = {"requests": requests, "num_requests": 120}
        return simulator.run({"seed": 1, "workload": workload, "deployments": [dense]})

    crowd, spread, client = run(), run(start="spread"), run(judge_ramp=True)
    of_each = [one.summary.iloc[0] for one in (crowd, spread, client)]
    assert [one["num_requests"] for one in of_each] == [96, 96, 120]
    assert of_each[1]["ttft_mean_s"] < 0.5 * of_each[0]["ttft_mean_s"]
    assert [any("lockstep" in note for note in one.run["notes"]) for one in (crowd, spread)] == [
        True,
        False,
    ]
