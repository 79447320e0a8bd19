"""Every column of the summary against a plain loop over a record made by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from simulator.config.workload import SLO
from simulator.results.metrics import (
    CLASS_COLUMNS,
    METRICS,
    is_in_time,
    measure_throughput,
    summarise,
    summarise_classes,
)
from simulator.results.tables import (
    GAP_BINS_PER_DECADE,
    NUM_GAP_BINS,
    SHORTEST_GAP_S,
    STEP_PHASES,
    DeploymentRecord,
    Gaps,
)
from simulator.work.flops import served_flops
from tests.cases import seeds

#   arrival, first token, finish, input, output, cached, preemptions
REQUESTS = [
    (0.0, 0.5, 2.5, 100, 5, 0, 0),
    (1.0, 1.25, 1.25, 40, 1, 20, 0),  # one token: no TPOT
    (2.0, 4.0, 10.0, 300, 13, 0, 2),
    (3.0, 3.5, 4.0, 60, 11, 0, 1),
]
#   start, duration, used
STEPS = [(0.0, 2.0, 0.1), (2.0, 1.0, 0.6), (4.0, 5.0, 0.3)]
PREFILL_TOKENS = 1000
"""Prompt tokens of every step: more than the prompts have together."""
GAPS_S = [0.01] * 60 + [0.02] * 38 + [0.5] * 2
PARTS = np.arange(1.0, len(STEP_PHASES) + 1) / sum(range(1, len(STEP_PHASES) + 1))
TARGETS = SLO(ttft_s=1.0, tpot_s=0.1)
STREAM_S = 2**-7


def gaps(values_s):
    counts = np.zeros(NUM_GAP_BINS, np.int64)
    for value in values_s:
        counts[int(math.log10(value / SHORTEST_GAP_S) * GAP_BINS_PER_DECADE)] += 1
    return Gaps(counts)


@pytest.fixture(scope="module")
def plan(tiny):
    return tiny.plan("moe", attention_dp=4, ep=4, replicas=2)


def record(requests=REQUESTS):
    arrival, first, finish, num_input, num_output, cached, preempted = (
        np.array(column) for column in zip(*requests, strict=True)
    )
    duration = np.array([step[1] for step in STEPS])
    empty = pd.DataFrame()
    return DeploymentRecord(
        name="it",
        requests=pd.DataFrame(
            {
                "arrival_s": arrival,
                "first_token_s": first,
                "finish_s": finish,
                "num_input": num_input,
                "num_output": num_output,
            }
            | {"num_cached": cached, "num_preemptions": preempted}
            | {"num_retries": 0, "outcome": "finished", "room_wait_s": 0.0, "stream_s": STREAM_S}
        ),
        steps=pd.DataFrame(
            {
                "start_s": [s[0] for s in STEPS],
                "duration_s": duration,
                "kv_used": [s[2] for s in STEPS],
                "prefill_tokens": PREFILL_TOKENS,
                "decodes": [4, 10, 6],
                "decode_tokens": [6, 25, 19],
            }
            | {
                f"{phase}_s": duration * part
                for phase, part in zip(STEP_PHASES, PARTS, strict=True)
            }
        ),
        ranks=empty,
        experts=empty,
        traffic=empty,
        spans=empty,
        moves=empty,
        changes=(),
        rebalances=(),
        imbalance_curve=None,
        price_audit=None,
        itl=gaps(GAPS_S),
        load_imbalance=1.75,
        uniform_imbalance=1.25,
        dropped_share=0.125,
        overflow_by_layer=None,
        sampled_steps={},
        read_bytes=5e12,
    )


def percentile(values, level):
    """Linear between the two nearest, as numpy and most papers have it."""
    values = sorted(values)
    place = (len(values) - 1) * level / 100
    low = math.floor(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def expected(plan):
    ttft = [first - arrival + STREAM_S for arrival, first, *_ in REQUESTS]
    e2e = [finish - arrival + STREAM_S for arrival, _, finish, *_ in REQUESTS]
    tpot = [
        (finish - first) / (output - 1)
        for _, first, finish, _, output, *_ in REQUESTS
        if output > 1
    ]
    duration = 10.0
    inputs, outputs = sum(r[3] for r in REQUESTS), sum(r[4] for r in REQUESTS)
    met = 2  # the third is late in both, the fourth meets both; a single token has no TPOT to miss; the first has 0.5 s a token
    busy = sum(step[1] for step in STEPS)
    flops = sum(
        served_flops(plan.placement.model, *(np.array([r[i]]) for i in (3, 4, 5))) for r in REQUESTS
    )
    peak = plan.placement.accelerator.bf16_flops_per_s
    found = {
        "num_requests": 4,
        "num_gpus": 8,
        "gpus_held": 8,
        "duration_s": duration,
        "input_tokens_per_s": inputs / duration,
        "output_tokens_per_s": outputs / duration,
        "total_tokens_per_s_per_gpu": (inputs + outputs) / duration / 8,
        "output_tokens_per_s_per_gpu": outputs / duration / 8,
        "slo_attainment": met / 4,
        "goodput_per_s": met / duration,
        "utilisation": busy / duration / 2,
        "load_imbalance": 1.75,
        "uniform_imbalance": 1.25,
        "dropped_share": 0.125,
        "availability": math.nan,
        "mfu": flops / (peak * 4 * busy),
        "mbu": 5e12 / (plan.placement.accelerator.memory_bytes_per_s * 4 * busy),
        "kv_used_mean": sum(step[1] * step[2] for step in STEPS) / busy,
        "kv_used_max": 0.6,
        "prefix_hit_ratio": 20 / inputs,
        "num_preemptions": 3,
        "room_wait_mean_s": 0.0,
        "tokens_per_decode": 50 / 20,
        "num_retries": 0,
        "num_lost": 0,
        "num_refused": 0,
        "recomputed_share": 1 - (inputs - 20) / (PREFILL_TOKENS * len(STEPS)),
        "cost_per_million_output_tokens": plan.placement.cluster.price_per_gpu_hour
        * 8
        * duration
        / 3600
        / outputs
        * 1e6,
        **{f"{phase}_share": part for phase, part in zip(STEP_PHASES, PARTS, strict=True)},
    }
    for name, values in (("ttft", ttft), ("tpot", tpot), ("e2e", e2e)):
        found |= {f"{name}_p{level}_s": percentile(values, level) for level in (50, 90, 95, 99)}
        found |= {f"{name}_mean_s": sum(values) / len(values)} if name != "e2e" else {}
    return found


def test_every_column_agrees_with_a_plain_loop(plan):
    row = summarise([plan], [record()], TARGETS).iloc[0]
    wanted = expected(plan)
    pooled = {"itl_p50_s": 0.01, "itl_p99_s": 0.5}
    assert list(row.index) == ["deployment", *METRICS]
    assert {*wanted, *pooled} == set(METRICS), "every metric is computed here by hand"
    for key, value in wanted.items():
        assert row[key] == pytest.approx(value, rel=1e-12, nan_ok=True), key
    for key, value in pooled.items():
        assert row[key] == pytest.approx(value, rel=0.005), key


def test_classes_are_summaries_of_their_own_requests(plan):
    whole = record().requests.assign(priority=[0, 1, 1, 0])
    table = summarise_classes({"it": whole}, TARGETS).set_index("priority")
    assert list(table.index) == [0, 1]
    for priority, own in whole.groupby("priority"):
        alone = summarise([plan], [record([REQUESTS[n] for n in own.index])], TARGETS).iloc[0]
        for key in {*CLASS_COLUMNS} - {"deployment", "priority"}:
            assert table.loc[priority, key] == pytest.approx(alone[key], rel=1e-12, nan_ok=True)
    assert not len(summarise_classes({"it": whole.assign(priority=3)}, TARGETS))
    of_texts = summarise_classes({"it": whole.assign(priority=["b", "a", "a", "b"])}, TARGETS)
    assert of_texts["priority"].tolist() == ["a", "b"]
    some = summarise_classes({"it": whole.assign(priority=[0, 1, np.nan, 0])}, TARGETS)
    assert some["num_requests"].tolist() == [2, 1, 1], "those without a priority are the last"
    many = pd.concat([whole] * 6, ignore_index=True)
    assert not len(summarise_classes({"it": many.assign(priority=range(24))}, TARGETS))
    late = summarise_classes({"it": whole}, TARGETS, num_lead_in=2)
    assert late["num_requests"].tolist() == [1, 1]


def test_without_targets_there_is_nothing_to_attain(plan):
    row = summarise([plan], [record()], SLO()).iloc[0]
    assert math.isnan(row["slo_attainment"])
    assert math.isnan(row["goodput_per_s"])


def test_one_token_answers_have_no_tpot_and_cannot_miss_its_target(plan):
    row = summarise([plan], [record([(0.0, 0.5, 0.5, 10, 1, 0, 0)])], SLO(tpot_s=1e-6)).iloc[0]
    assert math.isnan(row["tpot_p50_s"])
    assert row["slo_attainment"] == 1.0


def drawn_requests(seed):
    """Some are lost; a stay is some tenth of the time of arrivals."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(30, 200))
    arrival_s = np.cumsum(rng.exponential(1.0, count))
    first_s = arrival_s + rng.exponential(3.0, count)
    num_output = rng.integers(1, 30, count)
    finish_s = first_s + (num_output - 1) * rng.exponential(0.2, count)
    finish_s[rng.random(count) < 0.05] = np.nan
    return pd.DataFrame(
        {
            "arrival_s": arrival_s,
            "first_token_s": first_s,
            "finish_s": finish_s,
            "num_input": rng.integers(1, 2000, count),
            "num_output": num_output,
        }
    )


def count_slowly(requests, begin_s, end_s):
    """Prompt and output tokens, one by one."""
    prompts = tokens = 0
    for row in requests.dropna().itertuples():
        later = range(1, row.num_output)
        gap_s = (row.finish_s - row.first_token_s) / max(len(later), 1)
        times_s = [row.first_token_s, *(row.first_token_s + number * gap_s for number in later)]
        tokens += sum(begin_s <= time_s <= end_s for time_s in times_s)
        prompts += row.num_input * (begin_s <= row.first_token_s <= end_s)
    return prompts, tokens


@seeds(9100, 20)
def test_throughput_is_of_the_tokens_that_come_out_while_judged_requests_arrive(seed):
    requests = drawn_requests(seed)
    last_s = requests["arrival_s"].max()
    for num_lead_in in (0, 10):
        later = requests.iloc[num_lead_in:]
        begin_s = later["arrival_s"].min()
        stay_s = (later["finish_s"] - later["arrival_s"]).mean()
        end_s = last_s if last_s - begin_s >= 2 * stay_s else requests["finish_s"].max()
        found = measure_throughput(requests, num_lead_in)
        prompts, tokens = count_slowly(requests, begin_s, end_s)
        assert found.window_s == end_s - begin_s
        assert found.input_tokens_per_s == prompts / found.window_s
        assert found.output_tokens_per_s == tokens / found.window_s


@seeds(9300, 10)
def test_a_short_run_is_measured_to_its_last_token(seed):
    """As long as all tokens take, which are all counted."""
    requests = drawn_requests(seed)
    burst, served = requests.assign(arrival_s=requests["arrival_s"] / 1e3), requests.dropna()
    duration_s = burst["finish_s"].max() - burst["arrival_s"].min()
    assert measure_throughput(burst) == (
        duration_s,
        served["num_input"].sum() / duration_s,
        served["num_output"].sum() / duration_s,
    )


@pytest.mark.parametrize(
    ("slo", "met"),
    [(SLO(e2e_s=2.0), [0, 1]), (SLO(ttft_s=1.0), [1, 1]), (SLO(ttft_s=1.0, tpot_s=0.3), [0, 1])],
)
def test_a_target_is_met_at_its_limit_and_all_must_be(slo, met):
    latency = pd.DataFrame({"ttft_s": [1.0, 0.5], "tpot_s": [0.4, np.nan], "e2e_s": [3.0, 2.0]})
    assert is_in_time(latency, slo).tolist() == [bool(one) for one in met]
