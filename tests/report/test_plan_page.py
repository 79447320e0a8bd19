"""The page of a plan: it says the answer's numbers, with their bands, and leaves out what was not
asked.
"""

import json
import re

import pytest

from simulator.report import plan_page
from simulator.report.gallery import plots
from simulator.report.plan_page import FIGURES
from simulator.results.answer import Answer
from simulator.results.answer.folder import PlanResults
from tests.report.pages import payload_of
from tests.report.plan_answers import HOSTILE, RUN, answer, banded, row


def render(table, run):
    return plan_page.render(PlanResults(run, Answer.model_validate(table)))


def section(page, anchor):
    return re.search(rf'<section id="{anchor}">(.*?)</section>', page, re.S)[1]


def test_it_says_the_numbers_and_escapes_the_names():
    page = render(answer(), RUN)
    table = section(page, "the-candidates")
    for said in (
        "5.98 to 11.96",
        "0.399",
        "125 ms",
        "31.4 ms",
        "limit 50 ms",
        "63 %",
        "11.96",
        "+300 %",
        "0.436",
    ):
        assert said in table
    assert "10,302" in page
    assert "81 % probable" in section(page, "how-sure-this-is")
    assert "47.84 USD" in section(page, "when-nodes-fail")
    assert "moesim run recommended.toml" in section(page, "hand-over")
    assert "vllm serve &#39;&lt;x&gt;&#39;" in section(page, "hand-over")
    assert "no cache" in section(page, "hand-over")
    assert "does not fit in memory" in section(page, "ruled-out")
    assert "moesim plan p.toml" in section(page, "how-this-plan-was-made")
    assert "<b>moe" not in page
    assert "<script>alert" not in page


def test_two_plans_of_one_seed_have_the_same_page():
    assert render(answer(), RUN | {"wall_s": 3.0, "started": "today"}) == render(
        answer(), RUN | {"wall_s": 4.0, "started": "tomorrow"}
    )


def test_bands_stand_below_their_figures_and_as_whiskers():
    table = section(render(banded(answer()), RUN), "the-candidates")
    for said in ("4.78 to 8.97", "0.319 to 0.598", "100 to 188 ms", "hold 80 % of cases"):
        assert said in table
    drawn = payload_of(render(banded(answer()), RUN))["plots"]
    whiskered = [
        plot["id"]
        for plot in drawn
        if any({"error_x", "error_y"} & trace.keys() for trace in plot["data"])
    ]
    shaded = [
        plot["id"] for plot in drawn if any(trace.get("fill") == "toself" for trace in plot["data"])
    ]
    assert len(whiskered) == 6  # models, rates, front, cost, sensitivity, losses
    assert len(shaded) == 2
    full_load = [
        plot["data"][0]["text"][0] for plot in drawn if plot["data"][0]["type"] == "heatmap"
    ][-1]
    assert [" ?" in cell for cell in full_load] == [
        False,
        True,
    ]  # of 1.27 the whole band is above equal, of 0.71 it is not below
    plain = render(answer(), RUN)
    assert not any(
        {"error_x", "error_y", "fill"} & trace.keys()
        for plot in payload_of(plain)["plots"]
        for trace in plot["data"]
    )
    assert "80 % of cases" not in section(plain, "speed-and-cost")


def test_the_whiskers_of_a_time_are_those_of_the_speed_upside_down():
    drawn = payload_of(render(banded(answer()), RUN))["plots"]
    plot = next(
        plot
        for plot in drawn
        if plot["layout"]["xaxis"]["title"]["text"] == "Time per output token (ms)"
    )
    trace = next(trace for trace in plot["data"] if "error_x" in trace)
    low, high = (
        trace["x"][0] - trace["error_x"]["arrayminus"][0],
        trace["x"][0] + trace["error_x"]["array"][0],
    )
    assert low == pytest.approx(1000 / (1.5 * 45), rel=1e-3)
    assert high == pytest.approx(1000 / (0.8 * 45), rel=1e-3)


def test_a_band_without_an_end_runs_off_the_plot():
    made = answer()
    best = made["candidates"][0] | {
        "needed_cost_per_hour_low": 5.98,
        "needed_cost_per_hour_high": None,
        "band": "closed form",
    }
    made |= {"recommended": best, "candidates": [best, *made["candidates"][1:]]}
    made["best_of_each_model"][HOSTILE] = best
    page = render(made, RUN)
    assert "5.98 or more" in section(page, "the-candidates")
    assert "in italics are analytical estimates" in section(page, "the-candidates")
    plot = payload_of(page)["plots"][0]
    ends = [trace["error_x"]["array"][0] for trace in plot["data"] if "error_x" in trace]
    assert ends
    assert min(ends) > plot["layout"]["xaxis"]["range"][1]


OPTIONAL = (
    "pareto",
    "sensitivity",
    "losses",
    "spare_nodes",
    "idle",
    "confidence",
    "crossover",
    "handover",
    "basis",
    "sizes",
)


@pytest.mark.parametrize("left_out", [(), *[(name,) for name in OPTIONAL], OPTIONAL])
def test_what_was_not_asked_is_left_out(left_out):
    made = answer()
    page = render({key: value for key, value in made.items() if key not in left_out}, RUN)
    assert "Not drawn for this run" not in page
    shown = {
        "sensitivity": "What if",
        "crossover": "Where MoE wins",
        "handover": "Hand-over",
        "confidence": "How sure this is",
    }
    for name, title in shown.items():
        assert (f"<h2>{title}</h2>" in page) == (name not in left_out)


def test_an_impossible_plan_has_a_page():
    made = answer(
        candidates=[],
        best_of_each_model={},
        pareto=[],
        headline="No deployment meets every target.",
    )
    del made["recommended"]
    made = {key: made[key] for key in made if key not in OPTIONAL}
    page = render(made, {})
    assert "No deployment meets every target." in page
    assert "The candidates" not in page
    missed = row(HOSTILE, True, 8, 23.92, worst_target="backlog", worst_ratio=12.3)
    why_not = {"text": "falls behind what comes", "row": missed}
    shown = section(render(made | {"why_not": why_not}, {}), "the-candidates")
    assert "Nearest, as large as the limits allow" in shown
    assert "12\N{MULTIPLICATION SIGN}" in shown


def test_machines_without_a_price_are_counted_instead():
    free = {
        "cost_per_hour": 0.0,
        "cost_per_million_output_tokens": 0.0,
        "cost_per_million_tokens": 0.0,
    }
    made = answer()
    rows = [one | free for one in made["candidates"]]
    made |= {
        "recommended": rows[0],
        "candidates": rows,
        "best_of_each_model": {HOSTILE: rows[0], "dense-70b": rows[2]},
    }
    made["pareto"] = [{**point, "cost_per_million_output_tokens": 0.0} for point in made["pareto"]]
    made["sensitivity"] = [
        {
            "change": "twice the traffic",
            "deployment": "x",
            "cost_per_hour": 0.0,
            "cost_ratio": None,
            "flips": False,
        }
    ]
    made["confidence"] |= {"needed_cost_low": 2.0, "needed_cost_high": 4.0}
    page = render(made, RUN)
    assert "2 to 4 GPUs" in section(page, "how-sure-this-is")
    assert "GPUs" in json.dumps([plot["layout"]["xaxis"] for plot in payload_of(page)["plots"]])
    assert "Cost against latency" not in page


def test_two_models_that_miss_with_deployments_of_one_text_are_both_shown():
    missed = {
        name: {
            "text": f"{name} misses it",
            "row": row(name, False, 8, 23.92, worst_ratio=1.4, deployment="as written"),
        }
        for name in ("big", "bigger")
    }
    table = section(render(answer(why_not_models=missed), RUN), "the-candidates")
    for name in missed:
        assert table.count(f"{name} misses it") == 1


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_introduce_themselves_and_draw_numbers_only(figure):
    assert figure.title[0].isupper()
    assert figure.definition.endswith(".")
    assert figure.absent.endswith(".")
    assert plots(figure, Answer(name="p")) == {}
    assert plots(figure, Answer.model_validate(answer()))


def test_the_map_offers_what_is_no_axis_and_shows_one_combination():
    drawn = next(
        p
        for p in payload_of(render(answer(), RUN))["plots"]
        if (p["layout"].get("meta") or {}).get("choices")
    )
    assert {c["name"]: c["first"] for c in drawn["layout"]["meta"]["choices"]} == {
        "Experts": "no EP",
        "Network": "as it is",
    }
    shown = [trace for trace in drawn["data"] if trace["visible"]]
    assert len(drawn["data"]) == 4
    assert [trace["meta"]["Network"] for trace in shown] == ["as it is"]
    assert "2.00\N{MULTIPLICATION SIGN}" in shown[0]["text"][0][0]
