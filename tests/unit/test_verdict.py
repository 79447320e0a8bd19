"""The verdict's sentences, on runs made by hand."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.formats import seconds_text
from simulator.results.folder import TABLES, Results
from simulator.results.metrics import METRICS
from simulator.results.phases import STEP_PHASES
from simulator.results.tables import MOVE_COLUMNS
from simulator.results.verdict import short_names, verdict, with_verdict
from simulator.results.why import explain
from tests.cases import cases


def deployment(
    name,
    *,
    ttft_s=0.1,
    tpot_s=0.01,
    slo=0.98,
    is_moe=False,
    waiting=0,
    late_s=1.0,
    phases_s=None,
    num_mixed=0,
    limited_by="max_sequences",
    pool="both",
    running=12,
    **changes,
):
    """A row of the summary, its steps, its requests and its facts."""
    phases_s = phases_s or {"attention": 0.004, "dense": 0.005, "overhead": 0.001}
    step_s = sum(phases_s.values())
    row = dict.fromkeys(METRICS, np.nan)
    row |= {f"{phase}_share": phases_s.get(phase, 0.0) / step_s for phase in STEP_PHASES}
    row |= {
        "deployment": name,
        "ttft_p50_s": ttft_s,
        "tpot_p50_s": tpot_s,
        "slo_attainment": slo,
        "num_gpus": 8.0,
        "num_retries": 0.0,
        "room_wait_mean_s": 0.0,
        "tokens_per_decode": 1.0,
    }
    row |= {
        "duration_s": 100.0 + late_s,
        "e2e_p50_s": 1.0,
        "kv_used_max": 0.25,
        "output_tokens_per_s": 1234.0,
    }
    facts = {
        "active_parameters": 13e9,
        "total_parameters": 47e9 if is_moe else 13e9,
        "is_moe": is_moe,
        "is_rumour": False,
        "currency": "",
    }
    facts |= {
        "model_title": "A Model",
        "max_sequences": 256,
        "token_budget": 8192,
        "num_batches": 2,
    }
    facts |= {key: changes.pop(key) for key in list(changes) if key in facts}
    row |= changes
    facts["num_gpus"] = int(row["num_gpus"])
    steps = pd.DataFrame(
        {
            "replica": 0,
            "pool": pool,
            "start_s": step_s * np.arange(5),
            "duration_s": step_s,
            "num_steps": 1,
            "prefill_tokens": [0] * (5 - num_mixed) + [100] * num_mixed,
            "decode_tokens": 12,
            "decodes": 12,
            "running": running,
            "waiting": waiting,
            "kv_used": 0.25,
            "limited_by": limited_by if waiting else "none",
        }
        | {f"{phase}_s": phases_s.get(phase, 0.0) for phase in STEP_PHASES},
    )
    requests = pd.DataFrame(
        {
            "request": [0, 1],
            "replica": 0,
            "outcome": "finished",
            "arrival_s": [0.0, 100.0],
            "first_token_s": [0.0, 100.0 + late_s],
            "room_wait_s": 0.0,
            "transfer_s": 0.0,
            "stream_s": 0.0,
            "finish_s": [5 * step_s, 100.0 + late_s],
            "num_output": [6, 1],
        }
    )
    return row, steps, requests, facts


def results(*made):
    empty = pd.DataFrame({"deployment": pd.Series([], dtype=str)})
    tables = dict.fromkeys(TABLES, empty)
    tables |= {
        "moves": pd.DataFrame(columns=list(MOVE_COLUMNS)),
        "steps": {m[0]["deployment"]: m[1] for m in made},
        "requests": {m[0]["deployment"]: m[2] for m in made},
    }
    summary = pd.DataFrame([m[0] for m in made])
    return Results(
        run={"deployments": {m[0]["deployment"]: m[3] for m in made}}, summary=summary, **tables
    )


def said(*made):
    found = verdict(results(*made))
    for sentence in (found["headline"], *found["reasons"]):
        assert sentence.endswith("."), sentence
        assert not re.search(r"nan|100\.0|inf\b|  |\.\.", sentence), sentence
    return found


def test_more_requests_in_time_wins_whatever_the_latencies():
    found = said(deployment("A, split", ttft_s=0.2), deployment("B, whole", slo=0.5))
    assert found["winner"] == "A, split"
    assert "98.0 % of requests meet the targets, against 50.0 % with B" in found["headline"]


def headline_of(*made, better, workload=None):
    """With the probability that a figure of A is better than B's."""
    found = results(*made)
    chances = {"A": {"B": better}, "B": {"A": {key: 1 - one for key, one in better.items()}}}
    found.run["bands"] = {"better": chances}
    found.run["workload"] = workload or {}
    return verdict(found)["headline"]


def test_what_is_sure_is_said_first_and_the_rest_with_its_probability():
    made = deployment("A", tpot_s=0.01, ttft_s=0.1), deployment("B", tpot_s=0.027, ttft_s=0.09)
    better = {"latency": 0.97, "tpot_p50_s": 0.99, "ttft_p50_s": 0.4}
    assert headline_of(*made, better=better) == (
        "The following tokens come 2.70 times faster with A (A against B: TTFT p50 100 ms against "
        "90 ms, TPOT p50 10 ms against 27 ms). Both meet the targets for at least 98.0 % of "
        "requests. With a probability of 60 %, the first token comes 1.11 times sooner with B."
    )


@pytest.mark.parametrize(("chance", "is_sure"), [(0.89, False), (0.9, True)])
def test_a_winner_is_named_as_far_as_that_is_sure(chance, is_sure):
    made = deployment("A"), deployment("B", slo=0.9)
    said_first = headline_of(*made, better={"slo_attainment": chance})
    fact = "98.0 % of requests meet the targets"
    if is_sure:
        assert said_first.startswith(f"A serves this traffic better than B: {fact}, against 90.0 %")
    else:
        assert said_first.startswith("Between A and B no difference is sure (")
        assert said_first.endswith(
            f" With a probability of 89 %, {fact} with A, against 90.0 % with B."
        )


def test_a_runs_tail_is_no_difference_of_cost_or_goodput():
    """At equal arrivals GPUs of one price cost the same, however many tokens come out in time."""
    cost = {"currency": "USD", "slo": 1.0}
    first = deployment("A", cost_per_million_output_tokens=10.3, output_tokens_per_s=1100.0, **cost)
    tail = {"goodput_per_s": 2.83, "output_tokens_per_s": 1000.0}
    second = deployment("B", cost_per_million_output_tokens=11.33, **tail, **cost)
    headline = said(first, second)["headline"]
    assert headline.startswith("A and B serve this traffic equally well (")
    assert "cost" not in headline
    twice = deployment("B", cost_per_million_output_tokens=22.66, **tail, **cost)
    assert "equally well; the GPUs cost 2.00 times less with A" in said(first, twice)["headline"]
    closed = headline_of(first, second, better={}, workload={"concurrency": 4})
    assert "equally well; a token costs 1.10 times less with A" in closed


def test_all_requests_in_time_is_not_written_with_a_decimal():
    assert (
        "100 % of requests" in said(deployment("A", slo=1.0), deployment("B", slo=0.5))["headline"]
    )
    assert (
        "99.9 % of requests"
        in said(deployment("A", slo=0.99999), deployment("B", slo=0.5))["headline"]
    )


def test_equal_latencies_are_a_tie():
    found = said(deployment("A"), deployment("B", ttft_s=0.1005))
    assert found["winner"] is None
    assert "equally well" in found["headline"]


def test_sooner_but_slower_is_a_trade_off():
    found = said(deployment("A", ttft_s=0.05, tpot_s=0.02), deployment("B"))
    assert found["winner"] is None
    assert found["headline"].startswith(
        "It is a trade-off: the following tokens come 2.00 times faster with B; "
        "the first token comes 2.00 times sooner with A (A against B: "
    )


@pytest.mark.parametrize(
    ("imbalance", "uniform", "wanted"),
    [
        (2.12, 2.11, "2.12 times the mean rank's tokens, which is no skew: uniform routing of the"),
        (1.22, 1.20, "1.22 times the mean rank's tokens, which is no skew: uniform routing of the"),
        (2.12, 1.62, "would come to 1.62 by chance, and the skew of its routing adds 0.50."),
        (1.40, 1.001, "1.40 times the mean rank's tokens, which is the skew of its routing."),
    ],
)
def test_what_chance_gives_is_not_called_skew(imbalance, uniform, wanted):
    found = said(deployment("A", is_moe=True, load_imbalance=imbalance, uniform_imbalance=uniform))
    assert wanted in " ".join(found["reasons"])


def test_what_is_left_by_a_capacity_is_not_held_to_chance():
    loads = {"load_imbalance": 1.4, "uniform_imbalance": 1.5}
    found = said(deployment("A", is_moe=True, dropped_share=0.1, **loads))
    told = " ".join(found["reasons"])
    assert "1.40 times the mean rank's tokens, of those that are not dropped." in told
    assert "skew" not in told


def test_even_ranks_are_worth_no_word():
    found = said(deployment("A", is_moe=True, load_imbalance=1.0, uniform_imbalance=1.0))
    assert "busiest rank" not in " ".join(found["reasons"])


def test_dropped_choices_are_a_reason_of_the_deployment_that_drops_them():
    free, capped = deployment("free", is_moe=True), deployment("capped", dropped_share=0.125)
    for found in (said(capped), said(free, capped)):
        told = [reason for reason in found["reasons"] if "drops" in reason]
        assert [reason.split(" of its")[0] for reason in told] == ["capped drops 12 %"]


def test_shares_on_either_side_of_a_step_do_not_make_the_slower_one_win():
    found = said(
        deployment("slow", slo=0.9976, tpot_s=0.02, ttft_s=0.2), deployment("quick", slo=0.9974)
    )
    assert found["winner"] == "quick"
    assert "the following tokens come 2.00 times faster; the first" in found["headline"]


def test_three_are_ranked():
    found = said(
        deployment("A", tpot_s=0.03), deployment("B", tpot_s=0.01), deployment("C", tpot_s=0.02)
    )
    assert found["winner"] == "B"
    assert found["headline"].endswith("Behind them: A.")


def test_a_single_one_is_described_and_wins_nothing():
    found = said(deployment("A, alone"))
    assert found["winner"] is None
    assert "8 GPUs; 98.0 % of requests meet the targets" in found["headline"]
    assert "1 GPU;" in said(deployment("A", num_gpus=1.0))["headline"]


def test_answers_of_one_token_and_no_targets():
    one = [
        deployment(name, tpot_s=np.nan, slo=np.nan, ttft_s=ttft_s)
        for name, ttft_s in (("A", 0.1), ("B", 0.3))
    ]
    found = said(*one)
    assert found["winner"] == "A"
    assert "the first token comes 3.00 times sooner (" in found["headline"]
    assert "undefined" not in found["headline"]
    assert "targets" not in found["headline"]


@pytest.mark.parametrize("moe_wins", [True, False])
def test_why_names_what_differs_most_whoever_wins(moe_wins):
    scale = 1 if moe_wins else 6
    moe_s = {"attention": 0.003, "experts": 0.002, "dispatch": 0.001 * scale, "wait": 0.001 * scale}
    moe = deployment("MoE", is_moe=True, tpot_s=0.007 if moe_wins else 0.02, phases_s=moe_s)
    dense = deployment(
        "dense", tpot_s=0.012, phases_s={"attention": 0.003, "dense": 0.007, "collective": 0.002}
    )
    found = said(moe, dense)
    why = found["reasons"][0]
    assert found["winner"] == ("MoE" if moe_wins else "dense")
    assert why.startswith("Why: an output token takes")
    saved, paid = why.split(", spends")
    assert ("7.00 ms of dense blocks" in saved, "7.00 ms more on dense blocks" in paid) == (
        moe_wins,
        not moe_wins,
    )
    assert ("sending tokens to experts" in saved) != moe_wins


def numbers_of(text):
    return [Decimal(found) for found in re.findall(r"[\d.]+(?= (?:us|ms|s|min|h)\b)", text)]


@given(
    quick=st.lists(st.floats(1e-7, 1e3), min_size=8, max_size=8),
    slow=st.lists(st.floats(1e-7, 1e3), min_size=8, max_size=8),
)
@cases(200)
def test_terms_that_are_shown_add_up_to_the_difference_that_is_shown(quick, slow):
    token_time = pd.DataFrame(
        [
            {
                "deployment": name,
                "kind": "decode",
                **{f"{phase}_s": parts[phase] for phase in STEP_PHASES},
                "token_s": sum(parts.values()),
            }
            for name, times in (("quick", quick), ("slow", slow))
            for parts in [dict(zip(STEP_PHASES, times, strict=True))]
        ]
    )
    (why,) = map(str, explain(token_time, "quick", "slow", {"quick": "quick", "slow": "slow"}))
    if "about as long" in why:
        return
    times, terms = why.split(", mean over all: ")
    first, second = numbers_of(times)
    terms, _, _ = terms.partition(", in all" if ", in all" in terms else " in all.")
    total = Decimal(0)
    for piece in re.split(r", (?=spends|saves|loses)", terms):
        values = numbers_of(re.sub(r", [\d.]+ \S+$", "", piece))
        total += sum(values) * (1 if "saves" in piece else -1)
    assert total == second - first or total == first - second
    assert second > first or why.startswith("Yet") or "quick takes" in why


def test_no_cause_is_claimed_where_the_winner_has_the_longer_output_token():
    slower = deployment("A", ttft_s=0.01, phases_s={"dense": 0.012})
    assert said(slower, deployment("B", ttft_s=0.3))["reasons"][0].startswith(
        "Yet an output token takes"
    )


def test_steps_that_compute_prompts_too_are_named_where_they_are_much_of_the_time():
    found = said(deployment("A", num_mixed=3), deployment("B", tpot_s=0.02))
    assert any(
        "60 % with A and 0 % with B pass in steps that compute prompts" in reason
        for reason in found["reasons"]
    )


def test_calm_runs_have_room_unless_the_cache_is_full():
    calm = said(deployment("A", slo=1.0), deployment("B", slo=0.99, tpot_s=0.02))["reasons"][1]
    assert calm.startswith("No queue builds up")
    assert "room for more" in calm
    assert "25 % (A), 25 % (B) full" in calm
    for changes in ({"kv_used_max": 0.97}, {"slo": 0.9}, {"slo": np.nan}):
        other = deployment("B", tpot_s=0.02, **({"slo": np.nan} if "slo" in changes else {}))
        reasons = said(deployment("A", **changes), other)["reasons"]
        assert not any("room for more" in reason for reason in reasons)


def test_queues_and_overload_are_told_apart():
    busy = deployment("A", waiting=3)
    lost = deployment("B", slo=0.1, waiting=40, late_s=60.0, limited_by="kv_cache")
    reasons = said(busy, lost)["reasons"]
    assert any(
        "A queues at times: 3.0 requests wait on average, for one of the 256 places of a rank "
        "(max_sequences) (100 % of that time)" in reason
        for reason in reasons
    )
    assert any(
        "B is overloaded: 40 requests wait on average, for blocks of the KV cache "
        "(100 % of that time); it ends 60 s after the last arrival" in reason
        for reason in reasons
    )
    assert not any("busy" in reason for reason in reasons)


def test_unequal_hardware_and_rumours_are_said():
    reasons = said(
        deployment("A", num_gpus=1.0), deployment("B, big", is_rumour=True, tpot_s=0.02)
    )["reasons"]
    assert "Not the same hardware: A has 1 GPU, B, big has 8 GPUs." in reasons
    assert any(reason.startswith("Rumour:") for reason in reasons)


def test_short_names_stay_apart_and_a_rumour_keeps_its_own():
    made = [deployment(name) for name in ("A, x", "A, y", "B, x")] + [
        deployment("C, x", is_rumour=True)
    ]
    assert list(short_names(results(*made)).values()) == ["A, x", "A, y", "B", "C, x"]


def test_a_merged_run_gets_a_verdict_of_its_own():
    assert (
        with_verdict(results(deployment("A"), deployment("B", tpot_s=0.02))).run["verdict"][
            "winner"
        ]
        == "A"
    )


def test_seconds_read_well():
    assert [seconds_text(s) for s in (16.3e-6, 0.00804, 1.2, 1896.0, 10_800.0)] == [
        "16.3 us",
        "8.04 ms",
        "1.2 s",
        "31.6 min",
        "3 h",
    ]
    assert seconds_text(float("nan")) == "undefined"


def test_work_that_is_done_again_is_named_with_its_share():
    def again(share):
        found = said(deployment("A", num_preemptions=4.0, recomputed_share=share))
        return [text for text in found["reasons"] if "second time" in text]

    assert not again(0.01)
    (text,) = again(0.88)
    assert "A computes 88 % of its prompt tokens a second time" in text
    assert "4 times" in text


def test_more_sequences_than_were_measured_are_called_extrapolated():
    def notes(running):
        reasons = said(deployment("A", running=running))["reasons"]
        return [text for text in reasons if text.startswith("Extrapolated")]

    assert not notes(2 * 512)
    (text,) = notes(2 * 700)
    assert "some 700 sequences in a batch of A" in text
