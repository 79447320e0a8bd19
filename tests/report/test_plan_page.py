"""The page of a plan: it says the answer's numbers, leaves out what was not asked, and opens offline, on a desk and on a phone."""

import json
import re

import pytest

from simulator import plugins
from simulator.report.gallery import plots
from simulator.report.plan_figures import figures
from simulator.report.plan_page import render

HOSTILE = "<b>moe</b> & <script>alert(1)</script>"
RUN = {"command": "moesim plan p.toml", "seed": 7, "versions": {"moesim": "0.1.0"}, "question": {"name": HOSTILE}}
PLACE = {"input": 1024, "output": 1024, "network": 1.0, "moe": HOSTILE, "dense": "dense-70b"}
SIDES = {
    f"{kind}_{key}": value
    for kind in ("moe", "dense")
    for key, value in {"tokens_per_s_gpu": 900.0, "sequences_per_gpu": 16.0, "time_per_token_s": 0.02, "split": "TP 8"}.items()
}


def row(model, is_moe, gpus, cost, **changes):
    return {
        "deployment": f"{model} fp8, 1 replica of TP {gpus} on {gpus} x h100-sxm", "model": model, "is_moe": is_moe,
        "cluster": f"h100-sxm-{gpus}", "gpus": gpus, "gpus_used": gpus, "replicas": 1, "prefill_replicas": 0, "token_budget": 8192,
        "cost_per_hour": cost, "cost_power_per_hour": 0.0, "cost_per_million_output_tokens": cost / 15, "cost_per_million_tokens": cost / 95,
        "cost_joules_per_output_token": 0.436, "worst_target": "tpot_s.p90", "worst_ratio": 0.63, "ttft_s.p90": 0.125,
        "tpot_s.p90": 0.0314, "output_tokens_per_s": 3900.0, "output_tokens_per_s_per_gpu": 3900.0 / gpus,
    } | changes  # fmt: skip


def cells(rows):
    return [
        PLACE | SIDES | {"fits": True, "winner": HOSTILE, "ratio": 2.0, "deciding_term": "KV reading", "share": 0.4} | r
        for r in rows
    ]


def answer(**changes):
    best, runner, dense = row(HOSTILE, True, 2, 5.98), row(HOSTILE, True, 4, 11.96), row("dense-70b", False, 8, 23.92)
    points = [
        {
            "model": one["model"], "is_moe": one["is_moe"], "cluster": "h100-sxm", "deployment": one["deployment"], "kind": kind,
            "tokens_per_s_user": 30.0 * n, "tokens_per_s_gpu": 2000.0 / n, "cost_per_million_output_tokens": 0.4 * n,
        }
        for one in (best, dense)
        for n, kind in ((1, "closed form"), (2, "closed form"), (1.5, "simulated"))
    ]  # fmt: skip
    nothing = {"fits": False, "ratio": None, "winner": None, "deciding_term": None, "share": None, "moe_tokens_per_s_gpu": None}
    return {
        "name": HOSTILE,
        "headline": f"{HOSTILE} on 2 GPUs meets every target for 5.98 USD per hour.",
        "reasons": ["It would carry 1.46 times this traffic."],
        "seed": 7, "currency": "USD", "targets": {"ttft_s.p90": 2.0, "tpot_s.p90": 0.05},
        "models": [{"name": HOSTILE, "is_moe": True}, {"name": "dense-70b", "is_moe": False}],
        "traffic": {"rate_per_s": 19.3, "num_requests": 3000, "mean_input": 1156.0, "mean_output": 216.0},
        "num_legal": 10248, "num_ruled_out": 54, "num_simulated": 35,
        "recommended": best | {"headroom": 1.46}, "candidates": [best, runner, dense],
        "best_of_each_model": {HOSTILE: best, "dense-70b": dense},
        "ruled_out": [{"reason": "does not fit in memory", "count": 54, "example": "dense-70b, TP 1"}],
        "sizes": {"smaller": {"gpus": 1, "worst_target": "tpot_s.p90", "worst_ratio": 1.4, "measured": 0.07}, "larger": None},
        "basis": {best["deployment"]: {"assumptions": [{"what": "price", "value": "2.99", "kind": "assumed", "source": "list"}], "warnings": ["far off"]}},
        "pareto": points,
        "sensitivity": [
            {"change": "twice the traffic", "deployment": "x", "cost_per_hour": 11.96, "cost_ratio": 2.0, "flips": True, "note": "short"},
            {"change": "GPUs 30 % cheaper", "deployment": "y", "cost_per_hour": 4.186, "cost_ratio": 0.7, "flips": False, "note": ""},
            {"change": "a slow network", "deployment": None, "cost_per_hour": None, "cost_ratio": None, "flips": True, "note": ""},
        ],
        "losses": [
            {"nodes_lost": n, "gpus_left": 2 - n, "goodput_per_s": 19.0 - 9 * n, "attainment": 1 - 0.4 * n, "worst_ratio": 0.63, "met": n == 0}
            for n in range(3)
        ],
        "spare_nodes": [{"nodes_lost": 1, "gpus": 16, "nodes": 2, "cost_per_hour": 47.84, "extra_cost_per_hour": 41.86, "why": ""}],
        "idle": {"unused_gpus": 1, "unused_cost_per_hour": 2.99, "spare_experts": None},
        "confidence": {
            "cost_low": 5.98, "cost_high": 11.96, "beats_second": 0.81, "meets_targets": 0.77, "second": runner["deployment"],
            "figures": {"tpot_s.p90": {"value": 0.0314, "low": 0.028, "high": 0.041}},
            "sources": [{"name": "calibration", "low": 0.8, "high": 1.3, "text": "measured over predicted"}],
        },
        "crossover": {
            "models": {"moe": [HOSTILE], "dense": ["dense-70b"]},
            "cells": cells([
                {"batch_per_gpu": b, "ep": ep, "network": n} | (nothing if b > 9 else {})
                for b in (1.0, 16.0) for ep in (1, 8) for n in (0.5, 1.0)
            ]),
            "at_same_time": cells([{"time_per_token_s": s, "pairing": "best of each", "gpus": None} for s in (0.02, 0.05)]),
            "at_full_load": cells([{"gpus": g, "ratio": r} for g, r in ((None, 1.27), (8, 0.71))]),
            "flips": ["the mixture wins up to 8k"],
        },
        "handover": {
            "scenarios": [{"file": "recommended.toml", "text": "name = '<x>'\n"}],
            "commands": [{"deployment": best["deployment"], "name": "server", "command": "vllm serve '<x>'", "not_expressed": ["no cache"]}],
        },
    } | changes  # fmt: skip


def payload_of(page):
    return json.loads(re.search(r'id="payload">(.*?)</script>', page)[1])


def section(page, anchor):
    return re.search(rf'<section id="{anchor}">(.*?)</section>', page, re.S)[1]


def test_it_says_the_numbers_and_escapes_the_names():
    page = render(answer(), RUN)
    table = section(page, "the-candidates")
    for said in ("5.98 to 11.96", "0.399", "125 ms", "31.4 ms", "limit 50 ms", "63 %", "11.96", "+300 %", "0.436"):
        assert said in table
    assert "10,302" in page
    assert "81 % probable" in section(page, "how-sure-this-is")
    assert "47.84 USD" in section(page, "when-nodes-fail")
    assert "moesim run recommended.toml" in section(page, "hand-over")
    assert "vllm serve &#x27;&lt;x&gt;&#x27;" in section(page, "hand-over")
    assert "no cache" in section(page, "hand-over")
    assert "does not fit in memory" in section(page, "ruled-out")
    assert "moesim plan p.toml" in section(page, "how-this-plan-was-made")
    assert "<b>moe" not in page
    assert "<script>alert" not in page


def test_two_plans_of_one_seed_have_the_same_page():
    assert render(answer(), RUN | {"wall_s": 3.0, "started": "today"}) == render(
        answer(), RUN | {"wall_s": 4.0, "started": "tomorrow"}
    )


OPTIONAL = ("pareto", "sensitivity", "losses", "spare_nodes", "idle", "confidence", "crossover", "handover", "basis", "sizes")


@pytest.mark.parametrize("left_out", [(), *[(name,) for name in OPTIONAL], OPTIONAL])
def test_what_was_not_asked_is_left_out(left_out):
    made = answer()
    page = render({key: value for key, value in made.items() if key not in left_out}, RUN)
    assert "Not drawn for this run" not in page
    shown = {"sensitivity": "What if", "crossover": "Where MoE wins", "handover": "Hand-over", "confidence": "How sure this is"}
    for name, title in shown.items():
        assert (f"<h2>{title}</h2>" in page) == (name not in left_out)


def test_an_impossible_plan_has_a_page():
    made = answer(candidates=[], best_of_each_model={}, pareto=[], headline="No deployment meets every target.")
    del made["recommended"]
    page = render({key: made[key] for key in made if key not in OPTIONAL}, {})
    assert "No deployment meets every target." in page
    assert "The candidates" not in page


def test_machines_without_a_price_are_counted_instead():
    free = {"cost_per_hour": 0.0, "cost_per_million_output_tokens": 0.0, "cost_per_million_tokens": 0.0}
    made = answer()
    rows = [one | free for one in made["candidates"]]
    made |= {"recommended": rows[0], "candidates": rows, "best_of_each_model": {HOSTILE: rows[0], "dense-70b": rows[2]}}
    made["pareto"] = [{**point, "cost_per_million_output_tokens": 0.0} for point in made["pareto"]]
    made["sensitivity"] = [
        {"change": "twice the traffic", "deployment": "x", "cost_per_hour": 0.0, "cost_ratio": None, "flips": False}
    ]
    made["confidence"] |= {"cost_low": 2.0, "cost_high": 4.0}
    page = render(made, RUN)
    assert "2 GPUs to 4 GPUs" in section(page, "how-sure-this-is")
    assert "GPUs" in json.dumps([plot["layout"]["xaxis"] for plot in payload_of(page)["plots"]])
    assert "Cost against latency" not in page


@pytest.mark.parametrize("kind", plugins.available("report.plan_figures"))
def test_figures_introduce_themselves_and_draw_numbers_only(kind):
    figure = plugins.build("report.plan_figures", {"kind": kind}, "test")
    assert figure.title[0].isupper()
    assert figure.definition.endswith(".")
    assert figure.absent.endswith(".")
    assert plots(figure, {}) == {}
    assert plots(figure, answer())


def test_the_map_offers_what_is_no_axis_and_shows_one_combination():
    drawn = next(p for p in payload_of(render(answer(), RUN))["plots"] if (p["layout"].get("meta") or {}).get("choices"))
    assert {c["name"]: c["first"] for c in drawn["layout"]["meta"]["choices"]} == {"Experts": "no EP", "Network": "as it is"}
    shown = [trace for trace in drawn["data"] if trace["visible"]]
    assert len(drawn["data"]) == 4
    assert [trace["meta"]["Network"] for trace in shown] == ["as it is"]
    assert "2.00\N{MULTIPLICATION SIGN}" in shown[0]["text"][0][0]


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_offline_and_its_lists_and_buttons_work(browser, tmp_path, width):
    made = answer()
    file = tmp_path / "report.html"
    file.write_text(render(made, RUN), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.set_offline(True)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == sum(len(plots(f, made)) for f in figures())
    scrolled, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scrolled <= shown
    page.select_option("select[data-choice=Experts]", "EP 8")
    plot = "document.querySelector('select[data-choice=Experts]').closest('.cell').querySelector('.plot')"
    assert page.evaluate(f"{plot}.data.filter((trace) => trace.visible).map((trace) => trace.meta.Experts)") == ["EP 8"]
    page.dispatch_event(".copy >> nth=0", "click")
    assert page.evaluate("getSelection().toString()").strip() == "moesim run recommended.toml"
    assert problems == []
    context.close()
