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
            {"change": "twice the traffic", "deployment": runner["deployment"], "cost_per_hour": 11.96, "cost_ratio": 2.0, "flips": True, "note": "short"},
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
        "moe_vs_dense": {"cost_ratio": 0.25, "rates": [
            {"rate": r, "requests_per_s": 19.3 * r, "moe_cost_per_hour": 5.98 * r, "dense_cost_per_hour": 23.92, "cost_ratio": 0.25 * r}
            for r in (0.5, 1.0, 8.0)
        ]},
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


BANDED = frozenset({
    "cost_per_hour", "cost_per_million_output_tokens", "ttft_s.p90", "tokens_per_s_user", "tokens_per_s_gpu", "cost_ratio",
    "goodput_per_s", "ratio",
})  # fmt: skip


def banded(part):
    """The same answer with a band beside each of these figures."""
    if isinstance(part, list):
        return [banded(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    made = {key: banded(value) for key, value in part.items()}
    for key in BANDED & made.keys():
        if made[key] is not None:
            made |= {f"{key}_low": 0.8 * made[key], f"{key}_high": 1.5 * made[key]}
    return made


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


def test_bands_stand_below_their_figures_and_as_whiskers():
    table = section(render(banded(answer()), RUN), "the-candidates")
    for said in ("4.78 to 8.97", "0.319 to 0.598", "100 to 188 ms", "hold 80 % of cases"):
        assert said in table
    drawn = payload_of(render(banded(answer()), RUN))["plots"]
    whiskered = [plot["id"] for plot in drawn if any({"error_x", "error_y"} & trace.keys() for trace in plot["data"])]
    shaded = [plot["id"] for plot in drawn if any(trace.get("fill") == "toself" for trace in plot["data"])]
    assert len(whiskered) == 6  # models, rates, front, cost, sensitivity, losses
    assert len(shaded) == 2
    full_load = [plot["data"][0]["text"][0] for plot in drawn if plot["data"][0]["type"] == "heatmap"][-1]
    assert [" ?" in cell for cell in full_load] == [False, True]  # of 1.27 the whole band is above equal, of 0.71 it is not below
    plain = render(answer(), RUN)
    assert not any({"error_x", "error_y", "fill"} & trace.keys() for plot in payload_of(plain)["plots"] for trace in plot["data"])
    assert "80 % of cases" not in section(plain, "speed-and-cost")


def test_the_whiskers_of_a_time_are_those_of_the_speed_upside_down():
    drawn = payload_of(render(banded(answer()), RUN))["plots"]
    plot = next(plot for plot in drawn if plot["layout"]["xaxis"]["title"]["text"] == "Time per output token (ms)")
    trace = next(trace for trace in plot["data"] if "error_x" in trace)
    low, high = trace["x"][0] - trace["error_x"]["arrayminus"][0], trace["x"][0] + trace["error_x"]["array"][0]
    assert low == pytest.approx(1000 / (1.5 * 45), rel=1e-3)
    assert high == pytest.approx(1000 / (0.8 * 45), rel=1e-3)


def test_a_band_without_an_end_runs_off_the_plot():
    made = answer()
    best = made["candidates"][0] | {"cost_per_hour_low": 5.98, "cost_per_hour_high": None, "band": "closed form"}
    made |= {"recommended": best, "candidates": [best, *made["candidates"][1:]]}
    made["best_of_each_model"][HOSTILE] = best
    page = render(made, RUN)
    assert "5.98 or more" in section(page, "the-candidates")
    assert "in italics are estimated" in section(page, "the-candidates")
    plot = payload_of(page)["plots"][0]
    ends = [trace["error_x"]["array"][0] for trace in plot["data"] if "error_x" in trace]
    assert ends
    assert min(ends) > plot["layout"]["xaxis"]["range"][1]


def test_a_band_whose_ends_are_equal_has_no_whisker():
    made = answer()
    for one in made["best_of_each_model"].values():
        one |= {"cost_per_hour_low": one["cost_per_hour"], "cost_per_hour_high": one["cost_per_hour"]}
    page = render(made, RUN)
    assert "80 % of cases" not in section(page, "models-against-each-other")
    assert not any("error_x" in trace for trace in payload_of(page)["plots"][0]["data"])


def test_how_probable_it_is_that_a_row_is_the_cheapest_has_a_column():
    made = answer()
    assert "cheapest" not in section(render(made, RUN), "the-candidates")
    for one, probability in zip(made["candidates"], (0.62, 0.004, 0.0), strict=True):
        one["is_best_probability"] = probability
    table = section(render(made, RUN), "the-candidates")
    for said in ("of being the cheapest", ">&lt; 1 %<", ">0 %<"):
        assert said in table
    made["candidates"][1]["none_cheaper_probability"] = 0.7
    assert "70 % with ties" in section(render(made, RUN), "the-candidates")


TRAFFIC = {"lead_requests": 230, "lasts_s": 155.4, "stay_s": 11.6, "is_steady": True, "lengthened_from": None}


def test_traffic_is_told_and_traffic_that_is_too_short_warned_of():
    made = answer()
    assert 'href="#the-traffic"' not in render(made, RUN)
    made["traffic"] |= TRAFFIC
    page = render(made, RUN)
    told = section(page, "the-traffic")
    for said in ("3,000, which arrive within 155 s", "first 230 requests", "11.6 s", "13.4 times as long: long enough"):
        assert said in told
    assert "generated" not in told
    assert 'class="alert"' not in page
    made["traffic"] |= {"lengthened_from": 1200}
    assert "asks for 1,200 requests" in section(render(made, RUN), "the-traffic")
    made["traffic"] |= {"is_steady": False}
    page = render(made, RUN)
    assert "too short to show a steady state" in re.search(r"</h1>(.*?)<ul", page, re.S)[1]
    assert "too short for a steady state" in section(page, "the-traffic")


def test_one_model_has_one_colour():
    made = answer()
    dense = made["best_of_each_model"]["dense-70b"]["deployment"]
    made["basis"][dense] = {"assumptions": [{"what": "price", "value": "9", "kind": "assumed", "source": "list"}]}
    page = render(made, RUN)
    swatch = re.search(r'style="([^"]*)"></span><span class="name">dense-70b fp8', section(page, "the-candidates"))[1]
    assert (
        re.search(r'style="([^"]*)"></span><span class="name">dense-70b<', section(page, "what-the-numbers-rest-on"))[1] == swatch
    )
    colour = re.search("#[0-9A-F]{6}", swatch)[0]
    assert all(
        trace["line"]["color"] == colour
        for plot in payload_of(page)["plots"]
        for trace in plot["data"]
        if trace["type"] == "scatter" and (trace.get("name") or "").startswith("dense-70b")
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
    made = {key: made[key] for key in made if key not in OPTIONAL}
    page = render(made, {})
    assert "No deployment meets every target." in page
    assert "The candidates" not in page
    missed = row(HOSTILE, True, 8, 23.92, worst_target="backlog", worst_ratio=12.3)
    for nearest in (missed, {"deployment": "x", "model": "x", "is_moe": True}):
        shown = section(render(made | {"why_not": {"row": nearest}}, {}), "the-candidates")
        assert "Nearest, as large as the limits allow" in shown
        assert "12\N{MULTIPLICATION SIGN}" in shown or nearest is not missed


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
    assert "2 to 4 GPUs" in section(page, "how-sure-this-is")
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


# Of every text that a plot shows: what sticks out of the plot, and which of one kind lie on each other.
CROWDED = """() => {
  const found = [];
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const around = plot.getBoundingClientRect();
    for (const kind of ['.annotation-text', '.xtick text', '.ytick text', '.heatmap-label text']) {
      const boxes = [...plot.querySelectorAll(kind)].map((text) => [text.textContent, text.getBoundingClientRect()]);
      boxes.forEach(([text, box], i) => {
        if (box.left < around.left - 1 || box.right > around.right + 1) found.push(`${plot.ariaLabel}: ${text} is cut`);
        for (const [other, next] of boxes.slice(i + 1)) {
          const apart = box.right <= next.left || next.right <= box.left || box.bottom <= next.top + 1 || next.bottom <= box.top + 1;
          if (!apart) found.push(`${plot.ariaLabel}: ${text} lies on ${other}`);
        }
      });
    }
  }
  return found;
}"""

# The text of the recommended deployment's hover box, and how far the box sticks out of its plot.
HOVERED = """() => {
  const plot = [...document.querySelectorAll('.js-plotly-plot')].find((p) => p.data.some((t) => t.name === 'recommended'));
  Plotly.Fx.hover(plot, [{ curveNumber: plot.data.findIndex((t) => t.name === 'recommended'), pointNumber: 0 }]);
  const box = plot.querySelector('.hovertext'), around = plot.getBoundingClientRect(), own = box.getBoundingClientRect();
  return [box.textContent, Math.max(around.left - own.left, own.right - around.right)];
}"""


def test_on_a_phone_nothing_is_cut_or_covered_and_bands_and_warning_show(browser, tmp_path):
    made = banded(answer())
    made["traffic"] |= TRAFFIC | {"is_steady": False}
    made["ruled_out"] *= 3
    made["ruled_out"][1] = {
        "reason": "attention data parallelism of a dense model is the same as more replicas",
        "count": 9,
        "example": "x",
    }
    best, tokens = made["recommended"], 8192
    for point in made["pareto"]:
        point["deployment"] += f", {tokens:,} tokens a step"
    file = tmp_path / "report.html"
    file.write_text(render(made, RUN), encoding="utf-8")
    context = browser.new_context(viewport={"width": 390, "height": 900})
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    assert page.evaluate(CROWDED) == []
    assert page.evaluate("document.querySelectorAll('.modebar-btn').length") == 0
    assert page.evaluate("[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length") == 0
    assert page.evaluate("document.querySelectorAll('.xerror, .yerror').length") > 10
    warning = page.locator("[role=alert]")
    assert warning.is_visible()
    assert warning.bounding_box()["y"] < 900
    said, over = page.evaluate(HOVERED)
    words = f"{best['deployment']}, {tokens:,} tokens a step".replace(" ", "")
    assert words in said.replace(" ", "")
    for part in ("2GPUs,5.98USDperhour", "TTFTp90125ms", "simulated"):
        assert part in said.replace(" ", "")
    assert over <= 1
    context.close()
