"""Bands of a run hold its figures, and chances of two deployments add up."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cli.run import print_run
from simulator.commands.run import run as run_scenario
from simulator.config.workload import SLO
from simulator.deployment.facts import facts_of
from simulator.engine.timeline import run_plan
from simulator.planner.calibration_error import MACHINE_ERRORS, read_bands
from simulator.planner.uncertainty import run_bands
from simulator.planner.uncertainty.run_bands import (
    MOST_BETWEEN,
    MOST_REQUESTS,
    StepTables,
    _interpolate,
    choose_stretch,
    draw_figures,
    find_knees,
    make_bands,
)
from simulator.report.page import render
from simulator.results import folder
from simulator.results.folder import gather
from simulator.results.metrics import METRICS, summarise
from simulator.results.run_bands_text import NEAR_SATURATION, note_on
from simulator.results.sampled_steps import describe_record
from simulator.results.verdict import find_verdict
from simulator.scenario.jobs import load_scenario
from tests.parts import change_plan
from tests.small_scenario import small_scenario

NO_TARGETS = SLO()
LOCAL_MOE = Path(__file__).parents[2] / "workloads" / "models" / "local" / "moe.toml"


def bands_for(plans, trace, slo=NO_TARGETS, seed=1):
    records = [run_plan(plan, trace) for plan in plans]
    summary = summarise(plans, records, slo)
    return make_from(plans, trace, slo, seed, summary, records), summary, records


def make_from(plans, trace, slo, seed, summary, records):
    drawn = {
        plan.name: draw_figures(plan, trace, slo, seed, own, record, StepTables())
        for plan, (_, own), record in zip(plans, summary.iterrows(), records, strict=True)
    }
    return make_bands(drawn)


def results_of(plans, bands, summary, records):
    facts = {
        plan.name: facts_of(plan) | describe_record(record)
        for plan, record in zip(plans, records, strict=True)
    }
    run = {
        "bands": bands,
        "slo": {},
        "deployments": facts,
        "fidelity": "step",
        "workload": {"num_requests": len(records[0].requests)},
    }
    return gather(run, summary, records)


def named(tiny, model, name, band=None, **keys):
    """A plan with an error of its engine's steps."""
    plan = tiny.plan(model, **keys)
    plan = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"name": name}))
    return plan if band is None else with_band(plan, band, band)


def with_band(plan, band, ttft_band):
    engine = plan.placement.calibration.engine.model_copy(
        update={"band": band, "ttft_band": ttft_band, "kind": "fitted", "unseen": {}}
    )
    calibration = plan.placement.calibration.model_copy(update={"engine": engine})
    return change_plan(plan, calibration=calibration)


@pytest.mark.parametrize("concurrency", [None, 6])
@pytest.mark.parametrize("model", ["dense", "moe"])
def test_bands_hold_every_figure_that_is_better_one_way(tiny, model, concurrency):
    plan = named(tiny, model, "it", (0.8, 1.3))
    found, summary, _ = bands_for([plan], tiny.trace(60, 4000.0, concurrency=concurrency))
    edges = found["deployments"]["it"]
    assert {"ttft_p50_s", "tpot_p50_s", "e2e_p99_s"} <= edges.keys()
    for key, (low, high) in edges.items():
        assert low <= high
        if key in summary:
            assert METRICS[key].better
            value = float(summary[key].iloc[0])
            assert low <= value <= high


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


def rows_of(plan, trace, factors, slo=NO_TARGETS):
    """Figures of runs by hand."""
    tables = StepTables()
    records = [run_plan(plan, trace, fill=tables.slow(factor)) for factor in factors]
    return [summarise([plan], [record], slo).iloc[0] for record in records]


@pytest.mark.parametrize(("model", "rate"), [("dense", 100.0), ("moe", 4000.0)])
def test_ends_are_figures_of_runs_by_hand(tiny, model, rate):
    """First tokens as sure as steps are: nothing but the runs makes a band."""
    trace, slo = tiny.trace(80, rate), SLO(ttft_s=0.02, tpot_s=0.01)
    plan = with_band(named(tiny, model, "it"), (0.8, 1.3), (1.0, 1.0))
    found, summary, _ = bands_for([plan], trace, slo)
    slow = rows_of(plan, trace, (0.8, 1.3), slo)
    for key, edges in found["deployments"]["it"].items():
        by_hand = [float(row[key]) for row in slow] + [float(summary[key].iloc[0])]
        assert edges == [min(by_hand), max(by_hand)], key


def test_first_tokens_are_as_far_off_as_their_own_band_where_that_is_wider(tiny):
    trace = tiny.trace(12, 0.5)
    plan = with_band(named(tiny, "dense", "it"), (0.99, 1.01), (0.5, 3.0))
    found, summary, _ = bands_for([plan], trace)
    low, high = found["deployments"]["it"]["ttft_p50_s"]
    value = float(summary["ttft_p50_s"].iloc[0])
    assert [low / value, high / value] == pytest.approx([0.5, 3.0])
    [note] = [note for note in found["notes"] if note["metric"] == "ttft_p50_s"]
    assert note["kind"] == "wide_error"
    low, high = found["deployments"]["it"]["tpot_p50_s"]
    assert high / low < 1.05


def one_by_one(tiny, band, ttft_band=(0.9, 1.1)):
    """A plan that serves one request at a time."""
    rules = {"kind": "chunked", "token_budget": 64, "max_sequences": 1}
    return with_band(tiny.plan("dense", scheduling=rules), band, ttft_band)


def loaded(tiny, plan, load, count=400):
    """Equal requests at random instants, which take a share of the plan's time: M/D/1."""
    trace = tiny.trace(count, 1e-3)
    sizes = {"num_input": np.full(count, 32), "num_output": np.full(count, 8)}
    trace = dataclasses.replace(trace, **sizes)
    row = rows_of(plan, trace, (1.0,))[0]
    share = float(row["utilisation"] * row["duration_s"] / trace.arrival_s[-1])
    return dataclasses.replace(trace, arrival_s=trace.arrival_s * share / load)


def test_a_figure_near_saturation_is_noted_and_at_half_the_load_it_is_not(tiny):
    plan, noted = one_by_one(tiny, (0.85, 1.2)), {}
    for load in (0.95, 0.45):
        found, summary, records = bands_for([plan], loaded(tiny, plan, load))
        noted[load] = {(one["kind"], one["metric"]) for one in found["notes"]}
        for one in found["notes"]:
            assert [one["low"], one["high"]] == found["deployments"]["dense"][one["metric"]]
        if load == 0.95:
            results = results_of([plan], found, summary, records)
            assert "band.undetermined" in [one.kind for one in find_verdict(results).reasons]
            assert note_on(results, "dense", "ttft_p50_s") == NEAR_SATURATION
            assert note_on(results, "dense", "tpot_p50_s") == ""
    assert ("near_saturation", "ttft_p50_s") in noted[0.95]
    assert not [one for one in noted[0.45] if one[1] in ("ttft_p50_s", "e2e_p50_s", "tpot_p50_s")]


def test_every_band_whose_ends_differ_by_a_factor_of_two_has_a_note_and_no_other(tiny):
    plan = named(tiny, "moe", "it", (0.6, 1.7))
    found, _, _ = bands_for([plan], tiny.trace(80, 4000.0), SLO(ttft_s=0.02))
    wide = {key for key, (low, high) in found["deployments"]["it"].items() if high >= 2 * low > 0}
    noted = {note["metric"] for note in found["notes"] if note["low"] > 0}
    assert noted == wide


def test_a_deployment_with_a_calibration_of_one_machine_has_a_band(tiny):
    plan = tiny.plan("dense", num_layers=1, cluster="this-machine-1")
    bands = read_bands(plan, False)
    assert bands.token[0] < 1 < bands.token[1]
    assert "from the errors of its kernels" in bands.source
    found, _, _ = bands_for([plan], tiny.trace(8, 0.5))
    low, high = found["deployments"]["dense"]["tpot_p50_s"]
    assert high / low == pytest.approx(bands.token[1] / bands.token[0], rel=0.05)


def test_a_machine_whose_times_spread_more_has_a_wider_band(tiny, monkeypatch):
    plan = tiny.plan("dense", num_layers=1, cluster="this-machine-1")
    fits, error = plan.placement.calibration.tables.matrix, 0.12

    def find_band(spread):
        found = fits.model_copy(update={"median_error": error, "spread": spread})
        monkeypatch.setattr("simulator.planner.calibration_error.fits_of", lambda _: {"a": found})
        return read_bands(plan, False).token

    assert find_band(None) == find_band(0.0)
    wide = np.exp(1.2816 / 0.6745 * np.hypot(error, 0.6745 * 0.2))
    assert find_band(0.2) == pytest.approx((1 / wide, wide))


def test_a_machine_whose_fits_state_no_error_is_assumed_to_err_as_layers_did(tiny, monkeypatch):
    plan = tiny.plan("dense", num_layers=1, cluster="this-machine-1")
    fits = {"matrices": plan.placement.calibration.tables.matrix}
    monkeypatch.setattr("simulator.planner.calibration_error.fits_of", lambda _: fits)
    bands = read_bands(plan, False)
    assert f"{MACHINE_ERRORS[1]:.0%}, assumed" in bands.source
    assert bands.token[1] == pytest.approx(np.exp(1.2816 * MACHINE_ERRORS[1] / 0.6745))


def count_served(monkeypatch):
    served, serve = [], run_bands.run_plan

    def count(plan, trace, *more):
        served.append(trace.num_requests)
        return serve(plan, trace, *more)

    monkeypatch.setattr(run_bands, "run_plan", count)
    return served


@pytest.mark.parametrize("load", [0.5, 0.97])
def test_a_band_costs_at_most_two_more_runs(tiny, monkeypatch, load):
    """Also of a longer trace, of which a stretch is served, and where a knee is looked into."""
    monkeypatch.setattr(run_bands, "MOST_REQUESTS", 80)
    plan = one_by_one(tiny, (0.85, 1.2))
    for count in (60, 119, 120, 400, 700):
        trace = loaded(tiny, plan, load, count)
        served = count_served(monkeypatch)
        found, _, _ = bands_for([plan], trace)
        monkeypatch.undo()
        monkeypatch.setattr(run_bands, "MOST_REQUESTS", 80)
        assert sum(served) <= 2 * count
        first, last = found["requests"]["dense"]
        assert last - first + 1 == (count if count < 120 else 80)
        assert 2 <= len(served) <= 3 + MOST_BETWEEN


def test_a_knee_is_looked_into_where_the_budget_allows(tiny, monkeypatch):
    monkeypatch.setattr(run_bands, "MOST_REQUESTS", 80)
    plan = one_by_one(tiny, (0.5, 1.6))
    trace = loaded(tiny, plan, 0.9, 700)
    served = count_served(monkeypatch)
    bands_for([plan], trace)
    assert 3 < len(served) <= 3 + MOST_BETWEEN


def test_a_stretch_of_a_long_trace_has_its_busiest_requests(tiny):
    count = 4 * MOST_REQUESTS
    trace = tiny.trace(count, 10.0)
    gaps = np.full(count, 0.1)
    gaps[15_000:16_500] = 0.01
    trace = dataclasses.replace(trace, arrival_s=np.cumsum(gaps))
    plan = tiny.plan("dense")
    first, end = choose_stretch(plan, trace)
    assert end - first == MOST_REQUESTS
    assert first < 14_000
    assert end > 16_500
    timed = tiny.plan("dense", replicas=2, failures=[{"kind": "kill", "at_s": 5.0, "gpu": 0}])
    assert choose_stretch(timed, trace) == (0, count)


def test_shares_stay_shares_and_the_page_names_the_stretch(tiny, monkeypatch):
    monkeypatch.setattr(run_bands, "MOST_REQUESTS", 40)
    plan = named(tiny, "dense", "it", (0.5, 2.0))
    found, summary, records = bands_for([plan], tiny.trace(100, 4000.0), SLO(ttft_s=0.02))
    first, last = found["requests"]["it"]
    assert last - first == 39
    low, high = found["deployments"]["it"]["slo_attainment"]
    assert 0.0 <= low <= float(summary["slo_attainment"].iloc[0]) <= high <= 1.0
    reasons = find_verdict(results_of([plan], found, summary, records)).reasons
    [bands] = [one for one in reasons if one.kind == "band.latencies"]
    assert bands.facts["stretches"] == [((first, last), ["it"])]


def test_a_verdict_that_is_not_sure_says_so_first(tiny):
    plans = quick_and_slow(tiny, (0.2, 5.0))
    found, summary, records = bands_for(plans, tiny.trace(40, 2.0))
    results = results_of(plans, found, summary, records)
    judged, better = find_verdict(results), found["better"]["quick"]["slow"]
    facts = judged.headline.facts
    assert [one.kind for one in facts["sure"]] == ["difference.price"]
    unsure = [one.facts for one in judged.reasons if one.kind == "verdict.unsure"]
    assert [(one["chance"], one["one"].kind) for one in unsure] == [
        (better[key], f"difference.{key}") for key in ("tpot_p50_s", "ttft_p50_s")
    ]
    assert judged.chance == better["latency"]

    # Hits of a cache of experts rest on how often tokens repeat themselves, which no band is of.
    results.run["deployments"]["quick"]["offload"] = "in dram, 4 of a layer cached by lru"
    for routing, is_known in (("lognormal (sigma 1.0)", False), ("replay (trace ids.npz)", True)):
        results.run["deployments"]["quick"]["routing"] = routing
        judged = find_verdict(results)
        assert (judged.reasons[0].kind != "verdict.chance_unknown") == is_known
        assert (judged.chance is not None) == is_known


def test_figures_lie_on_lines_between_the_runs_and_beyond_them_but_not_at_a_knee():
    """Of a share, which has no logarithm; then of its exponential; then of a knee, whose sides have
    the figures of the runs.
    """
    tried, at = np.array([-1.0, 0.0, 1.0]), np.array([-1.5, -1.0, -0.5, 0.0, 0.4, 1.0, 1.5])
    nowhere = np.array([False, False])
    shares = np.array([0.7, 0.6, 0.2])
    on_lines = [0.75, 0.7, 0.65, 0.6, 0.44, 0.2, 0.0]
    found = _interpolate(tried, shares, nowhere, at, "slo_attainment")
    assert found == pytest.approx(on_lines)
    times = np.exp(np.array([1.0, 2.0, 5.0]))
    on_lines = np.exp([0.5, 1.0, 1.5, 2.0, 3.2, 5.0, 6.5])
    assert _interpolate(tried, times, nowhere, at, "tpot_p50_s") == pytest.approx(on_lines)
    knees = find_knees(np.array([1.0, 1.5, 30.0]), np.exp(tried / 5))
    assert knees.tolist() == [False, True]
    found = _interpolate(tried, np.array([1.0, 1.5, 30.0]), knees, at, "ttft_p50_s")
    assert found[3:] == pytest.approx([1.5, 1.5, 30.0, 30.0])


def test_notes_and_bands_keep_their_deployments_where_runs_are_merged():
    parts = ("sources", "requests", "deployments", "knees", "better")
    note = {"kind": "near_saturation", "deployment": "own", "metric": "ttft_p50_s"}
    bands = {part: {"own": {}} for part in parts} | {"notes": [note]}
    table = pd.DataFrame({"deployment": ["own"]})

    def make_run(name, bands):
        run = {"name": name, "workload": {}, "slo": {}, "deployments": {"own": {}}, "bands": bands}
        return folder.Results(run, table, {}, {}, *(table for _ in folder.SHORT_TABLES))

    runs = [
        (Path(name), make_run(name, own)) for name, own in (("a", bands), ("b", bands), ("c", None))
    ]
    merged = folder.merge(runs).run["bands"]
    assert {tuple(merged[part]) for part in parts} == {("own (a)", "own (b)")}
    assert merged["notes"] == [note | {"deployment": f"own ({name})"} for name in "ab"]


def test_the_page_the_terminal_and_json_carry_the_note(tmp_path, capsys):
    """Of this machine's own calibration, nearly always busy."""
    path, out = tmp_path / "small.toml", tmp_path / "out"
    text = small_scenario(LOCAL_MOE, 1).replace("h100-sxm-8", "this-machine-1")
    path.write_text(text.replace("max_sequences = 8", "max_sequences = 1"))
    keys = ["workload.num_requests=300"]
    rate = "workload.requests.arrivals.rate_per_s"
    idle = run_scenario(load_scenario(str(path), [*keys, f"{rate}=0.1"])).summary.iloc[0]
    busy_s = float(idle["utilisation"] * idle["duration_s"]) / 300
    found = run_scenario(load_scenario(str(path), [*keys, f"{rate}={0.95 / busy_s}"]))
    found.write(out, render)
    known = json.loads((out / "run.json").read_text())["bands"]["notes"]
    assert {"ttft_p50_s"} <= {n["metric"] for n in known if n["kind"] == "near_saturation"}
    page = (out / "report.html").read_text()
    cell = re.findall('<td data-metric="ttft_p50_s".*?</td>', page)[0]
    assert NEAR_SATURATION in cell
    print_run(folder.Results.read(out))
    assert f"* {NEAR_SATURATION}" in capsys.readouterr().out
