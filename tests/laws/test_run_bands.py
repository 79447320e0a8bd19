"""Bands of a run hold its figures, and chances of two deployments add up."""

import dataclasses

import numpy as np
import pytest

from simulator.config.workload import SLO
from simulator.deployment.facts import facts_of
from simulator.engine.timeline import run_plan
from simulator.planner.uncertainty.run_bands import (
    MOST_REQUESTS,
    StepTables,
    _compare,
    _extrapolate,
    _move,
    draw_figures,
    make_bands,
)
from simulator.results.folder import gather
from simulator.results.metrics import METRICS, summarise
from simulator.results.run_bands_text import tell_chance
from simulator.results.shown_steps import describe_record
from simulator.results.verdict import verdict
from tests.parts import change_plan

NO_TARGETS = SLO()


def bands_for(plans, trace, slo=NO_TARGETS, seed=1):
    records = [run_plan(plan, trace) for plan in plans]
    summary = summarise(plans, records, slo)
    return make_from(plans, trace, slo, seed, summary, records), summary, records


def make_from(plans, trace, slo, seed, summary, records):
    drawn = {
        plan.name: draw_figures(plan, trace, slo, seed, own, record, StepTables())
        for plan, (_, own), record in zip(plans, summary.iterrows(), records, strict=True)
    }
    return make_bands(drawn, trace.num_requests)


def named(tiny, model, name, band=None, **keys):
    """A plan with an error of its engine's steps."""
    plan = tiny.plan(model, **keys)
    plan = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"name": name}))
    if band is None:
        return plan
    engine = plan.placement.calibration.engine.model_copy(
        update={"band": band, "ttft_band": band, "kind": "fitted"}
    )
    calibration = plan.placement.calibration.model_copy(update={"engine": engine})
    return change_plan(plan, calibration=calibration)


@pytest.mark.parametrize("concurrency", [None, 6])
@pytest.mark.parametrize("model", ["dense", "moe"])
def test_bands_hold_every_figure_that_is_better_one_way(tiny, model, concurrency):
    """But for a little: figures hang on which batches are formed, at random."""
    plan = named(tiny, model, "it", (0.8, 1.3))
    found, summary, _ = bands_for([plan], tiny.trace(60, 4000.0, concurrency=concurrency))
    edges = found["deployments"]["it"]
    assert {"ttft_p50_s", "tpot_p50_s", "e2e_p99_s"} <= edges.keys()
    for key, (low, high) in edges.items():
        assert low <= high
        if key in summary:
            assert METRICS[key].better
            value = float(summary[key].iloc[0])
            assert low * 0.95 <= value <= high * 1.05


def test_a_wider_error_has_wider_bands_and_none_has_none(tiny):
    trace = tiny.trace(60, 4000.0)
    widths = []
    for band in ((1.0, 1.0 + 1e-9), (0.9, 1.1), (0.7, 1.4)):
        plan = named(tiny, "dense", "it", band)
        low, high = bands_for([plan], trace)[0]["deployments"]["it"]["tpot_p50_s"]
        widths.append(high / low)
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(1.0, abs=1e-6)
    assert widths[-1] > 1.5


def test_a_band_of_steps_is_a_band_of_tokens_where_nothing_queues(tiny):
    """One request at a time: a token takes a step."""
    plan = named(tiny, "dense", "it", (0.8, 1.25))
    found, summary, _ = bands_for([plan], tiny.trace(12, 0.5))
    low, high = found["deployments"]["it"]["tpot_p50_s"]
    value = float(summary["tpot_p50_s"].iloc[0])
    assert [low / value, high / value] == pytest.approx([0.8, 1.25], rel=0.05)


def test_chances_of_two_add_up_and_equals_are_even(tiny):
    plans = [named(tiny, "dense", name) for name in ("one", "same")]
    plans.append(named(tiny, "moe", "other", attention_dp=2, ep=2))
    better = bands_for(plans, tiny.trace(60, 4000.0))[0]["better"]
    for name, by_other in better.items():
        for other, chances in by_other.items():
            for key, chance in chances.items():
                assert chance + better[other][name][key] == pytest.approx(1.0)
    assert all(chance == pytest.approx(0.5) for chance in better["one"]["same"].values())
    orders = {tuple(chances) for by_other in better.values() for chances in by_other.values()}
    assert orders == {tuple(better["one"]["same"])}, "a set's order changes from process to process"


def test_chances_are_told_in_the_order_of_the_figures():
    values = np.array([1.0, 2.0])
    mine = dict.fromkeys(("ttft_p50_s", "goodput_per_s", "e2e_p50_s", "tpot_p99_s"), values)
    theirs = dict.fromkeys(reversed(mine), values)
    assert list(_compare(mine, theirs)) == list(mine)


def quick_and_slow(tiny, band):
    """Two that differ in their split, so that half of their error is each one's own, and in the
    engine's time of a step.
    """
    quick, slow = (
        named(tiny, "dense", name, band, tp=tp) for name, tp in (("quick", 4), ("slow", 1))
    )
    engine = slow.placement.calibration.engine
    engine = engine.model_copy(update={"step_s": engine.step_s + 0.002})
    calibration = slow.placement.calibration.model_copy(update={"engine": engine})
    return [quick, change_plan(slow, calibration=calibration)]


def test_a_deployment_that_is_faster_is_better_as_surely_as_the_error_allows(tiny):
    trace = tiny.trace(40, 2.0)
    found, summary, _ = bands_for(quick_and_slow(tiny, (0.99, 1.01)), trace)
    times = summary["tpot_p50_s"].to_numpy()
    assert times[0] < 0.9 * times[1]
    assert found["better"]["quick"]["slow"]["latency"] > 0.99
    unsure = bands_for(quick_and_slow(tiny, (0.2, 5.0)), trace)[0]["better"]["quick"]["slow"]
    assert 0.5 < unsure["latency"] < 0.9


def test_the_same_seed_draws_the_same(tiny):
    plans = [named(tiny, "dense", "one"), named(tiny, "moe", "other")]
    trace = tiny.trace(30, 4000.0)
    assert bands_for(plans, trace)[0] == bands_for(plans, trace)[0]
    assert bands_for(plans, trace)[0] != bands_for(plans, trace, seed=2)[0]


def test_what_was_served_already_is_not_served_otherwise(tiny):
    plans, trace = [named(tiny, "moe", "it", (0.8, 1.3))], tiny.trace(40, 4000.0)
    found, summary, _ = bands_for(plans, trace)
    assert make_from(plans, trace, NO_TARGETS, 1, summary, [None]) == found


def test_shares_stay_shares_and_long_traces_are_judged_by_their_beginning(tiny):
    trace = tiny.trace(MOST_REQUESTS + 500, 4000.0)
    plan = named(tiny, "dense", "it", (0.5, 2.0))
    found, _, _ = bands_for([plan], trace, SLO(ttft_s=0.02))
    assert found["num_requests"] == MOST_REQUESTS
    low, high = found["deployments"]["it"]["slo_attainment"]
    assert 0.0 <= low <= high <= 1.0


def test_a_chance_is_never_told_as_a_certainty():
    assert [tell_chance(chance) for chance in (0.0, 0.004, 0.5, 0.999, 1.0)] == [
        "less than 1 %",
        "less than 1 %",
        "50 %",
        "more than 99 %",
        "more than 99 %",
    ]


def test_a_verdict_that_is_not_sure_says_so_first(tiny):
    plans = quick_and_slow(tiny, (0.2, 5.0))
    found, summary, records = bands_for(plans, tiny.trace(40, 2.0))
    facts = {
        plan.name: facts_of(plan) | describe_record(record)
        for plan, record in zip(plans, records, strict=True)
    }
    run = {"bands": found, "slo": {}, "deployments": facts, "fidelity": "step"}
    told = verdict(gather(run, summary, records))
    chance = tell_chance(found["better"]["quick"]["slow"]["latency"])
    assert f"That quick is better is not sure: the probability is {chance}." in told["headline"]
    assert told["reasons"][0].startswith("quick is better with a probability of ")


def test_shares_move_by_their_difference_and_other_figures_by_their_ratio():
    drawn = np.array([0.1, 0.6, 0.9])
    moved = [_move(0.7, drawn, 0.5, key) for key in ("slo_attainment", "ttft_p50_s")]
    assert moved[0] == pytest.approx([0.3, 0.8, 1.0])
    assert moved[1] == pytest.approx([0.14, 0.84, 1.26])
    np.testing.assert_array_equal(_move(0.7, drawn, 0.0, "ttft_p50_s"), np.full(3, 0.7))


def test_figures_lie_on_lines_between_the_speeds_that_were_tried_and_beyond_them():
    """Of a share, which has no logarithm; then of its exponential."""
    tried, at = np.array([-1.0, 0.0, 1.0]), np.array([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    shares = np.array([0.7, 0.6, 0.2])
    on_lines = [0.75, 0.7, 0.65, 0.6, 0.4, 0.2, 0.0]
    assert _extrapolate(0.6, tried, shares, at, "slo_attainment") == pytest.approx(on_lines)
    times = np.exp(np.array([1.0, 2.0, 5.0]))
    on_lines = np.exp([0.5, 1.0, 1.5, 2.0, 3.5, 5.0, 6.5])
    assert _extrapolate(times[1], tried, times, at, "tpot_p50_s") == pytest.approx(on_lines)


def test_the_better_of_two_figures_is_the_lower_one_unless_higher_is_better():
    low, high = np.array([1.0, 1.0, 2.0, 1.0]), np.array([2.0, 2.0, 1.0, 1.0])
    mine, theirs = (
        {"tpot_p50_s": one, "slo_attainment": one, "latency": one} for one in (low, high)
    )
    chances = {"tpot_p50_s": 0.625, "slo_attainment": 0.375, "latency": 0.625}
    assert _compare(mine, theirs) == chances
