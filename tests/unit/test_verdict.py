"""What a verdict finds, on runs made by hand."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.folder import TABLES, Results
from simulator.results.metrics import METRICS
from simulator.results.phases import STEP_PHASES
from simulator.results.run_sentences import find_rebalances
from simulator.results.tables import MOVE_COLUMNS
from simulator.results.verdict import compare_hardware, explain, find_verdict, short_names
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
    row |= {"deployment": name, "slo_attainment": slo, "duration_s": 100.0 + late_s}
    row |= {"ttft_p50_s": ttft_s, "tpot_p50_s": tpot_s, "e2e_p50_s": 1.0, "num_gpus": 8.0}
    row |= {"num_retries": 0.0, "room_wait_mean_s": 0.0, "tokens_per_decode": 1.0}
    row |= {"kv_used_max": 0.25, "output_tokens_per_s": 1234.0}
    facts = {"active_parameters": 13e9, "total_parameters": 47e9 if is_moe else 13e9}
    facts |= {"is_moe": is_moe, "is_rumour": False, "currency": "", "model_title": "A Model"}
    facts |= {"max_sequences": 256, "token_budget": 8192, "num_batches": 2}
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
            "scheduled_s": [0.0, 100.0],
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


def judge(*made, **run):
    """Judge, and render every sentence."""
    found = results(*made)
    found.run.update(run)
    judged = find_verdict(found)
    for sentence in map(str, (judged.headline, *judged.reasons)):
        assert sentence.endswith("."), sentence
        assert not re.search(r"nan|100\.0|inf\b|  |\.\.", sentence), sentence
    return judged


def facts_of(judged, kind):
    return [one.facts for one in judged.reasons if one.kind == kind]


def sure_of(judged):
    """Who is better by how much, as far as it is sure; nobody is named beside a winner."""
    return {
        one.kind.removeprefix("difference."): (one.facts["who"], one.facts.get("ratio"))
        for one in judged.headline.facts["sure"]
    }


def test_more_requests_in_time_wins_whatever_the_latencies():
    judged = judge(deployment("A, split", ttft_s=0.2), deployment("B, whole", slo=0.5))
    assert judged.winner == "A, split"
    (attained, *_) = judged.headline.facts["sure"]
    assert (attained.facts["most"], attained.facts["least"]) == (0.98, 0.5)


def judge_drawn(*made, better, workload=None):
    """With the probability that a figure of A is better than B's."""
    chances = {"A": {"B": better}, "B": {"A": {key: 1 - one for key, one in better.items()}}}
    return judge(*made, bands={"better": chances}, workload=workload or {})


def test_what_is_sure_is_said_first_and_the_rest_with_its_probability():
    made = deployment("A", tpot_s=0.01, ttft_s=0.1), deployment("B", tpot_s=0.027, ttft_s=0.09)
    judged = judge_drawn(*made, better={"latency": 0.97, "tpot_p50_s": 0.99, "ttft_p50_s": 0.4})
    assert sure_of(judged) == {"tpot_p50_s": ("A", pytest.approx(2.7))}
    [unsure] = facts_of(judged, "verdict.unsure")
    assert unsure["chance"] == 0.6
    assert (unsure["one"].kind, unsure["one"].facts["who"]) == ("difference.ttft_p50_s", "B")


@pytest.mark.parametrize(("chance", "is_sure"), [(0.89, False), (0.9, True)])
def test_a_winner_is_named_as_far_as_that_is_sure(chance, is_sure):
    made = deployment("A"), deployment("B", slo=0.9)
    judged = judge_drawn(*made, better={"slo_attainment": chance})
    assert judged.headline.facts["lead"] == ("better" if is_sure else "likely")
    unsure = facts_of(judged, "verdict.unsure")
    assert [one["chance"] for one in unsure] == [0.89] * (not is_sure)


def test_a_runs_tail_is_no_difference_of_cost_or_goodput():
    """At equal arrivals GPUs of one price cost the same, however many tokens come out in time."""
    cost = {"currency": "USD", "slo": 1.0}
    first = deployment("A", cost_per_million_output_tokens=10.3, output_tokens_per_s=1100.0, **cost)
    tail = {"goodput_per_s": 2.83, "output_tokens_per_s": 1000.0}
    second = deployment("B", cost_per_million_output_tokens=11.33, **tail, **cost)
    judged = judge(first, second)
    assert (judged.headline.facts["lead"], sure_of(judged)) == ("alike", {})
    twice = deployment("B", cost_per_million_output_tokens=22.66, **tail, **cost)
    assert sure_of(judge(first, twice)) == {"price": ("A", pytest.approx(2.0))}
    closed = judge_drawn(first, second, better={}, workload={"concurrency": 4})
    assert sure_of(closed) == {"cost": ("A", pytest.approx(1.1))}


def test_equal_latencies_are_a_tie():
    judged = judge(deployment("A"), deployment("B", ttft_s=0.1005))
    assert (judged.winner, judged.headline.facts["lead"]) == (None, "alike")


def test_sooner_but_slower_is_a_trade_off():
    judged = judge(deployment("A", ttft_s=0.05, tpot_s=0.02), deployment("B"))
    assert (judged.winner, judged.headline.facts["lead"]) == (None, "trade_off")
    assert sure_of(judged) == {"tpot_p50_s": ("B", 2.0), "ttft_p50_s": ("A", 2.0)}


def loaded(imbalance, uniform, dropped=0.0):
    loads = {"load_imbalance": imbalance, "uniform_imbalance": uniform, "dropped_share": dropped}
    return {"is_moe": True, **loads}


@pytest.mark.parametrize(
    ("changes", "kind", "found"),
    [
        (loaded(2.12, 2.11), "verdict.steps", [{"load": "chance"}]),
        (loaded(1.22, 1.20), "verdict.steps", [{"load": "chance"}]),
        (loaded(2.12, 1.62), "verdict.steps", [{"load": "both"}]),
        (loaded(1.40, 1.001), "verdict.steps", [{"load": "skew"}]),
        (loaded(1.4, 1.5, 0.1), "verdict.steps", [{"load": "dropped"}]),
        (loaded(1.0, 1.0), "verdict.steps", [{"load": "even"}]),
        (loaded(1.0, 1.0, 0.125), "run.drops", [{"name": "A", "dropped": 0.125}]),
        ({"recomputed_share": 0.01, "num_preemptions": 4.0}, "run.recomputes", []),
        (
            {"recomputed_share": 0.88, "num_preemptions": 4.0},
            "run.recomputes",
            [{"share": 0.88, "preemptions": 4}],
        ),
        ({"running": 2 * 512}, "verdict.extrapolated", []),
        ({"running": 2 * 700}, "verdict.extrapolated", [{"sequences": 700}]),
    ],
)
def test_a_run_tells_what_its_figures_say(changes, kind, found):
    facts = facts_of(judge(deployment("A", **changes)), kind)
    told = [{key: one[key] for key in some} for one, some in zip(facts, found, strict=True)]
    assert told == found


def test_shares_on_either_side_of_a_step_do_not_make_the_slower_one_win():
    judged = judge(
        deployment("slow", slo=0.9976, tpot_s=0.02, ttft_s=0.2), deployment("quick", slo=0.9974)
    )
    assert judged.winner == "quick"
    assert sure_of(judged) == {"tpot_p50_s": ("", 2.0), "ttft_p50_s": ("", 2.0)}


def test_three_are_ranked():
    judged = judge(
        deployment("A", tpot_s=0.03), deployment("B", tpot_s=0.01), deployment("C", tpot_s=0.02)
    )
    assert judged.winner == "B"
    assert judged.ranking == ["B", "C", "A"]
    assert facts_of(judged, "verdict.behind") == [{"behind": ["A"]}]


def test_a_single_one_is_described_and_wins_nothing():
    judged = judge(deployment("A, alone"))
    assert (judged.winner, judged.headline.kind) == (None, "verdict.single")
    assert judged.headline.facts["attained"] == 0.98


def test_answers_of_one_token_and_no_targets():
    one = [
        deployment(name, tpot_s=np.nan, slo=np.nan, ttft_s=ttft_s)
        for name, ttft_s in (("A", 0.1), ("B", 0.3))
    ]
    judged = judge(*one)
    assert judged.winner == "A"
    assert sure_of(judged) == {"ttft_p50_s": ("", pytest.approx(3.0))}
    [facts] = facts_of(judged, "verdict.figures")
    assert (list(facts["medians"]), facts["attained"]) == (["ttft"], None)


@pytest.mark.parametrize("moe_wins", [True, False])
def test_why_names_what_differs_most_whoever_wins(moe_wins):
    scale = 1 if moe_wins else 6
    moe_s = {"attention": 0.003, "experts": 0.002, "dispatch": 0.001 * scale, "wait": 0.001 * scale}
    moe = deployment("MoE", is_moe=True, tpot_s=0.007 if moe_wins else 0.02, phases_s=moe_s)
    dense = deployment(
        "dense", tpot_s=0.012, phases_s={"attention": 0.003, "dense": 0.007, "collective": 0.002}
    )
    judged = judge(moe, dense)
    assert judged.winner == ("MoE" if moe_wins else "dense")
    [why] = facts_of(judged, "why.differs")
    assert why["is_best"]
    assert why["gained" if moe_wins else "lost"]["dense"] == pytest.approx(7.0)
    assert "dispatch" in why["lost" if moe_wins else "gained"]


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
    [why] = facts_of(judge(slower, deployment("B", ttft_s=0.3)), "why.differs")
    assert not why["is_best"]


def test_steps_that_compute_prompts_too_are_named_where_they_are_much_of_the_time():
    judged = judge(deployment("A", num_mixed=3), deployment("B", tpot_s=0.02))
    assert facts_of(judged, "why.prompts") == [{"shares": {"A": pytest.approx(0.6), "B": 0.0}}]


def test_calm_runs_have_room_unless_the_cache_is_full():
    calm = judge(deployment("A", slo=1.0), deployment("B", slo=0.99, tpot_s=0.02))
    peaks = {"A": 0.25, "B": 0.25}
    assert facts_of(calm, "verdict.no_queue") == [{"peaks": peaks, "has_room": True}]
    for changes in ({"kv_used_max": 0.97}, {"slo": 0.9}, {"slo": np.nan}):
        other = deployment("B", tpot_s=0.02, **({"slo": np.nan} if "slo" in changes else {}))
        [facts] = facts_of(judge(deployment("A", **changes), other), "verdict.no_queue")
        assert not facts["has_room"]


def test_queues_and_overload_are_told_apart():
    busy = deployment("A", waiting=3)
    lost = deployment("B", slo=0.1, waiting=40, late_s=60.0, limited_by="kv_cache")
    judged = judge(busy, lost)
    [queues], [overloaded] = (facts_of(judged, f"run.{kind}") for kind in ("queues", "overloaded"))
    assert (queues["name"], queues["waiting"]) == ("A", pytest.approx(3.0))
    assert queues["limits"] == {"max_sequences": 1.0}
    assert (overloaded["name"], overloaded["waiting"]) == ("B", pytest.approx(40.0))
    assert (overloaded["limits"], overloaded["late_s"]) == ({"kv_cache": 1.0}, 60.0)


def test_unequal_hardware_and_rumours_are_said():
    judged = judge(deployment("A", num_gpus=1.0), deployment("B, big", is_rumour=True, tpot_s=0.02))
    [hardware] = facts_of(judged, "verdict.other_hardware")
    assert hardware["gpus"] == {"A": "1 GPU", "B, big": "8 GPUs"}
    assert [one["name"] for one in facts_of(judged, "verdict.rumour")] == ["B, big"]


def test_gpus_of_another_kind_are_other_hardware():
    made = results(deployment("A"), deployment("B", tpot_s=0.02))
    for name in "AB":
        made.run["deployments"][name]["accelerator"] = "H100"
    assert compare_hardware(made) == {}
    made.run["deployments"]["B"]["accelerator"] = "B200"
    assert compare_hardware(made) == {"A": "8 GPUs (H100)", "B": "8 GPUs (B200)"}


def test_short_names_stay_apart_and_a_rumour_keeps_its_own():
    made = [deployment(name) for name in ("A, x", "A, y", "B, x")] + [
        deployment("C, x", is_rumour=True)
    ]
    assert list(short_names(results(*made)).values()) == ["A, x", "A, y", "B", "C, x"]


def test_a_comparison_with_a_pruned_model_says_that_quality_is_not_compared():
    lesser, whole = deployment("A"), deployment("B", ttft_s=0.3)
    assert not facts_of(judge(lesser, whole), "verdict.lesser_models")
    for key in ("pruning", "reduction"):
        lesser[-1][key] = "two_four"
        assert facts_of(judge(lesser, whole), "verdict.lesser_models") == [{"names": ["A"]}]
        lesser[-1].pop(key)


MOVED = {
    **{"at_s": 30.0, "pool": "both", "num_experts": 1200, "num_bytes": 4.2e9, "seconds": 0.0315},
    **{"stops": True, "imbalance_before": 1.5, "imbalance_after": 1.02},
    **{"imbalance_next": 1.1, "imbalance_unmoved": 1.4},
}
WORSE = MOVED | {"num_experts": 800, "imbalance_next": 1.7}


@pytest.mark.parametrize(
    ("moves", "facts"),
    [
        ([], []),
        ([MOVED | {"num_parts": 12}], [{"parts": 12, "gains": True}]),
        ([MOVED, WORSE], [{"moves": 2, "copies": 1000, "stopped_s": 0.063, "gains": False}]),
        ([MOVED | {"imbalance_next": None}], [{"next_imbalance": None}]),
        ([MOVED | {"stops": False}], [{"stopped_s": 0}]),
        ([MOVED | {"predicted_s": s} for s in (0.02, 0.04)], [{"predicted_s": 0.03}]),
        ([MOVED, MOVED | {"predicted_s": 0.04}], [{"predicted_s": None}]),
    ],
)
def test_experts_that_move_are_averaged_and_judged(moves, facts):
    found = [*find_rebalances({"rebalances": moves}, "A")]
    for one, some in zip(found, facts, strict=True):
        assert {key: one.facts[key] for key in some} == pytest.approx(some)
