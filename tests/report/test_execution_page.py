"""The page of ``moesim execute``: it says what was measured whichever way it came out, and every
number, and opens offline.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.report.execution import render
from simulator.report.execution_figures import figures
from simulator.report.execution_verdict import verdict
from simulator.results import executed as executed_module
from simulator.results.executed import RANK_COLUMNS, STEP_COLUMNS, SUMMARY_COLUMNS, Executed
from simulator.results.formats import TIMES, UNDEFINED
from simulator.results.tables import SPAN_COLUMNS, STEP_PHASES

MACHINE = "AMD EPYC, 2 cores"
HOSTILE = "<script>alert('x')</script> & <b>bold</b>"
TOKENS = {"prompt": 512, "decode": 32}
WARM_UP, STEPS = 2, 6
FAULTS = ["deployment", "step", "ranks", "what", "recovery_s"]
MOE_SHARES = dict(zip(STEP_PHASES, (0.2, 0.05, 0.3, 0.1, 0.15, 0.1, 0.0, 0.1), strict=True))
DENSE_SHARES = dict(zip(STEP_PHASES, (0.2, 0.5, 0.0, 0.0, 0.0, 0.05, 0.15, 0.1), strict=True))


def deployment(
    name: str, speed: float, *, is_moe: bool = False, total: int = 26_000_000, **facts: Any
) -> dict[str, Any]:
    """What one deployment is, and how many prompts' tokens it computes in a second."""
    active = 4_300_000 if is_moe else total
    described = {
        "model": "moe" if is_moe else f"dense-{total}",
        "is_moe": is_moe,
        "num_gpus": 2,
        "pruning": None,
    }
    described |= {
        "model_title": f"Model of {name}",
        "total_parameters": total,
        "active_parameters": active,
        "warnings": [],
    }
    described["assumptions"] = (
        [{"what": "routing", "value": "zipf", "kind": "assumed", "source": "a test"}]
        if is_moe
        else []
    )
    return {"name": name, "speed": speed, "facts": described | facts}


def make(
    deployments: list[dict[str, Any]],
    *,
    kinds: tuple[str, ...] = ("prompt", "decode"),
    faults: tuple[tuple[Any, ...], ...] = (),
    ranks: int = 2,
    layers: int = 3,
    off: float = 0.8,
    difference: float = 3e-6,
    **run: Any,
) -> Executed:
    """An execution in which every prediction takes ``off`` of the time, and decode is ten times
    slower a token than prompts.
    """
    rng = np.random.default_rng(0)
    tables: dict[str, list[Any]] = {name: [] for name in ("summary", "steps", "ranks", "spans")}
    for made in deployments:
        for place, kind in enumerate(kinds):
            step_s = TOKENS[kind] / made["speed"] * (10 if kind == "decode" else 1)
            shares = MOE_SHARES if made["facts"]["is_moe"] else DENSE_SHARES
            numbers = range(place * (WARM_UP + STEPS) + WARM_UP, (place + 1) * (WARM_UP + STEPS))
            duration_s = {
                "measured": step_s * rng.uniform(0.9, 1.1, STEPS),
                "predicted": np.full(STEPS, off * step_s),
            }
            for source, all_s in duration_s.items():
                for number, took_s in zip(numbers, all_s, strict=True):
                    phases = {f"{phase}_s": share * took_s for phase, share in shares.items()}
                    row = {
                        "deployment": made["name"],
                        "kind": kind,
                        "source": source,
                        "number": number,
                        "tokens": TOKENS[kind],
                    }
                    tables["steps"].append({**row, "duration_s": took_s, **phases})
                for rank, layer in itertools.product(range(ranks), range(layers)):
                    start_s = layer / layers * all_s[-1]
                    for phase, share in shares.items():
                        length_s = share * all_s[-1] / layers
                        tables["spans"].append(
                            (
                                made["name"],
                                f"{kind}, {source}",
                                rank,
                                phase,
                                layer,
                                start_s,
                                length_s,
                            )
                        )
                        start_s += length_s
            if made["facts"]["is_moe"]:
                for number, rank, layer in itertools.product(numbers, range(ranks), range(layers)):
                    pairs = int(rng.integers(10, 100))
                    tables["ranks"].append(
                        (made["name"], kind, number, rank, layer, pairs, pairs // 2)
                    )
            middle_s = float(np.median(duration_s["measured"]))
            numbers_row = (
                TOKENS[kind] / middle_s,
                TOKENS[kind] / (off * step_s),
                middle_s,
                off * step_s,
                off * step_s / middle_s - 1,
            )
            parameters = (made["facts"]["total_parameters"], made["facts"]["active_parameters"])
            tables["summary"].append((made["name"], kind, *numbers_row, difference, *parameters))
    facts = {made["name"]: made["facts"] for made in deployments}
    described = {
        "name": "a test",
        "seed": 1,
        "command": "moesim execute test",
        "machine": MACHINE,
        "nodes": "1 node(s)",
        "wall_s": 3.0,
    }
    described |= {
        "calibration": {"title": "This machine", "machine": MACHINE, "source": "a test"},
        "deployments": facts,
    }
    described["scenario"] = {
        "execution": {
            "prompts": 8,
            "prompt_tokens": 64,
            "sequences": 32,
            "context_tokens": 128,
            "steps": STEPS,
        }
    }
    return Executed(
        run=described | run,
        summary=pd.DataFrame(tables["summary"], columns=list(SUMMARY_COLUMNS)),
        steps=pd.DataFrame(tables["steps"], columns=list(STEP_COLUMNS)),
        ranks=pd.DataFrame(tables["ranks"], columns=list(RANK_COLUMNS)),
        spans=pd.DataFrame(tables["spans"], columns=list(SPAN_COLUMNS)),
        faults=pd.DataFrame(list(faults), columns=FAULTS),
    )


MOE = deployment("MoE, 2 ranks", 2400, is_moe=True)
TOTAL = deployment("Dense, total", 1000)
ACTIVE = deployment("Dense, active", 4800, total=4_300_000)
HALF = deployment("Dense, half", 2000, pruning="unstructured (sparsity 0.5)")
LOST = (
    ("MoE, 2 ranks", 4, "1", "rank 1 died", 2.5),
    ("MoE, 2 ranks", 8, "0 1", "node 0 <died>", 12.25),
)

CASES = {
    "all": lambda: make([MOE, TOTAL, ACTIVE, HALF]),
    "faults": lambda: make([MOE, TOTAL], faults=LOST),
    "one": lambda: make([TOTAL], kinds=("decode",)),
    "no mixture": lambda: make([TOTAL, ACTIVE], kinds=("prompt",)),
    "only pruned": lambda: make([HALF]),
    "many ranks": lambda: make(
        [MOE, deployment("MoE, again", 1000, is_moe=True), TOTAL], ranks=24, layers=40
    ),
    "hostile": lambda: make(
        [deployment(HOSTILE, 100, is_moe=True, model_title=HOSTILE), TOTAL], name=HOSTILE
    ),
    "ten": lambda: make(
        [
            deployment(f"a deployment with a name that is very long indeed, no. {i}", 100 + i)
            for i in range(10)
        ]
    ),
    "no spans": lambda: dataclasses.replace(make([MOE, TOTAL]), spans=make([]).spans),
    "bare": lambda: dataclasses.replace(make([MOE, TOTAL]), run={"deployments": {}}),
}


@pytest.fixture(scope="module")
def cases() -> dict[str, Executed]:
    return {name: build() for name, build in CASES.items()}


class Cells(HTMLParser):
    """The cells of the table of all numbers, and every text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[dict[str, str | None]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if "data-metric" in dict(attrs):
            self.cells.append(dict(attrs))

    def handle_data(self, data):
        self.words.append(data)


def plots_of(page: str) -> list[dict[str, Any]]:
    return json.loads(re.search(r'id="payload">(.*?)</script>', page)[1])["plots"]


def test_headline_compares_a_mixture_with_its_twins(cases):
    found = verdict(cases["all"])
    assert re.fullmatch(
        rf"On this machine \({MACHINE}\) the MoE computes prompts 2\.\d+{TIMES} as fast as the dense model with as many parameters, "
        rf"and at 0\.\d+{TIMES} the speed of the one with as many active ones\.",
        found.headline,
    )
    said = " ".join(found.reasons)
    assert re.search(
        rf"The MoE decodes 2\.\d+{TIMES} as fast as the dense model with as many parameters", said
    )
    assert re.search(
        rf"2\.4{TIMES} and 0\.5{TIMES} for prompts, and 2\.4{TIMES} and 0\.5{TIMES} for decode",
        said,
    )
    assert re.search(
        rf"pruned from: Dense, half: prompts \d\.\d+{TIMES} and decode \d\.\d+{TIMES}\.", said
    )
    assert re.search(
        r"off by (19|20|21) % \(median of the absolute errors over 4 deployments and 2 kinds of step\)",
        said,
    )
    assert "equal the one-process reference: no hidden value differs by more than 3.0e-06" in said


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (500, f"prompts at 0.5{TIMES} the speed of the dense"),
        (1000, "prompts about as fast as the dense"),
        (3000, f"prompts 3{TIMES} as"),
    ],
)
def test_headline_says_whichever_way_it_came_out(speed, words):
    run = make([deployment("MoE", speed, is_moe=True), TOTAL])
    steady = run.summary.assign(tokens_per_s=[speed, speed / 10, 1000, 100])
    assert words in verdict(dataclasses.replace(run, summary=steady)).headline


def test_headline_without_a_mixture_or_twins():
    assert re.search(
        r"Dense, total decodes at [\d.]+ tokens per second\.", verdict(CASES["one"]()).headline
    )
    assert re.search(
        rf"Dense, active computes prompts fastest of 2 deployments, at [\d,]+ tokens per second: .*{TIMES} as fast as Dense, total",
        verdict(CASES["no mixture"]()).headline,
    )
    other = deployment("Other", 1000, total=9_000_000)
    assert "as fast as Other (9M parameters)" in verdict(make([MOE, other])).headline
    assert "the dense model with as many active parameters" in verdict(make([MOE, ACTIVE])).headline
    twins = verdict(make([MOE, TOTAL, deployment("Dense, 1 rank", 900, num_gpus=1)])).headline
    assert "the MoE (on 2 ranks)" in twins
    assert "Dense, 1 rank (26M parameters) on 1 rank" in twins


def test_several_mixtures_are_told_apart():
    found = verdict(make([MOE, deployment("MoE, 4 ranks", 500, is_moe=True), TOTAL]))
    assert ") MoE, 2 ranks computes prompts" in found.headline
    assert any(reason.startswith("MoE, 4 ranks computes prompts at 0.") for reason in found.reasons)


def test_reference_that_differs_or_is_missing_is_said():
    assert any(
        "do not equal" in reason and "5.0e-02" in reason
        for reason in verdict(make([TOTAL], difference=0.05)).reasons
    )
    assert any(
        "were not compared" in reason
        for reason in verdict(make([TOTAL], difference=math.nan)).reasons
    )


def test_order_of_the_prediction_is_counted():
    run = make([MOE, TOTAL])
    swapped = run.summary.assign(predicted_tokens_per_s=[1.0, 2.0, 2.0, 1.0])
    said = " ".join(verdict(dataclasses.replace(run, summary=swapped)).reasons)
    assert (
        "Of 2 pairs whose measured speeds differ by more than 5 %, it puts 1 in the right order."
        in said
    )


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_the_summary_is_on_the_page(cases, name, tmp_path):
    run = cases[name]
    page = render(run)
    run.summary.to_csv(tmp_path / "summary.csv", index=False)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = {(row["deployment"], row["kind"]): row for row in csv.DictReader(file)}
    cells = Cells(page).cells
    numbers = set(SUMMARY_COLUMNS) - {"deployment", "kind"}
    assert {(c["data-deployment"], c["data-kind"], c["data-metric"]) for c in cells} == {
        (*key, n) for key in rows for n in numbers
    }
    for cell in cells:
        assert float(cell["data-value"]) == float(
            rows[cell["data-deployment"], cell["data-kind"]][cell["data-metric"]]
        )
    assert page.startswith("<!doctype html>")
    assert page.count("<script") == 3


def test_page_fetches_nothing_and_escapes(cases):
    page = render(cases["hostile"])
    assert "<script>alert" not in page
    assert "<b>bold</b>" not in page.split("<script")[0]
    assert HOSTILE in "".join(Cells(page).words)
    for tag, attributes in Cells(page).tags:
        for name in ("src", "href", "action", "poster", "data"):
            value = attributes.get(name)
            assert not value or value.startswith("#"), f"<{tag} {name}={value}>"


def test_undefined_numbers_are_dashes():
    page = render(make([TOTAL], difference=math.nan))
    assert (
        re.findall(r'<td data-metric="largest_difference"[^>]*data-value="nan">(.*?)</td>', page)
        == [UNDEFINED] * 2
    )


def test_faults_are_told_and_marked(cases):
    page = render(cases["faults"])
    words = "".join(Cells(page).words)
    for said in (
        "Shards were lost 2 times",
        "after at most 12.2 s of recovery",
        "rank 1 died",
        "node 0 <died>",
        "2.50 s",
        "0 1",
    ):
        assert said in words
    assert page.index(">Faults<") < page.index(">Step by step<")
    crosses = [
        trace for plot in plots_of(page) for trace in plot["data"] if trace.get("name") == "fault"
    ]
    assert [trace["x"] for trace in crosses] == [[4], [8]]
    own = cases["faults"].steps
    took_s = own[
        (own["deployment"] == "MoE, 2 ranks") & (own["source"] == "measured") & (own["number"] == 4)
    ]["duration_s"]
    assert crosses[0]["y"] == pytest.approx(took_s.to_list(), rel=1e-9) or crosses[0][
        "y"
    ] == pytest.approx([1e3 * took_s.iloc[0]])


def test_recovery_is_no_spread(cases):
    run = cases["faults"]
    steps = run.steps.copy()
    is_broken = (
        (steps["deployment"] == "MoE, 2 ranks")
        & (steps["number"] == 4)
        & (steps["source"] == "measured")
    )
    steps.loc[is_broken, "duration_s"] = 30.0
    assert not any(
        reason.startswith("Steps vary")
        for reason in verdict(dataclasses.replace(run, steps=steps)).reasons
    )
    busy = steps["duration_s"].where(steps["number"] % 2 == 0, 3 * steps["duration_s"])
    noisy = verdict(dataclasses.replace(run, steps=steps.assign(duration_s=busy))).reasons
    assert any(reason.startswith("Steps vary: the 90th percentile is ") for reason in noisy)


def test_without_faults_there_is_no_table_of_them(cases):
    page = render(cases["all"])
    assert ">Faults<" not in page
    assert "Shards were lost" not in page


def test_what_is_not_drawn_says_why(cases):
    page = render(cases["one"])
    assert "No deployment has routed experts." in page
    assert ">Load of the ranks<" not in page
    assert "The run holds no timeline of single steps." in render(cases["no spans"])
    assert "Not drawn for this run" not in render(cases["all"])


def test_calibration_of_another_machine_is_a_warning(cases):
    other = {
        "calibration": {"title": "That machine", "machine": "Xeon, 64 cores", "source": "a test"}
    }
    page = render(make([TOTAL], **other))
    assert re.search(
        r'<p class="notice">The prediction rests on times of another machine \(Xeon, 64 cores\)',
        page,
    )
    none = render(make([TOTAL], calibration={"title": "H100", "machine": None, "source": ""}))
    assert 'class="notice">The prediction rests on H100, not on times of the machine' in none
    assert 'class="notice"' not in render(cases["all"])


def test_timelines_stay_small_and_measured_stands_above_predicted(cases):
    page = render(cases["many ranks"])
    timelines = [
        plot
        for plot in plots_of(page)
        if str(plot["layout"]["xaxis"]["title"]["text"]).startswith("Time since")
    ]
    assert len(timelines) == 6
    for plot in timelines:
        labels, places = plot["layout"]["yaxis"]["ticktext"], plot["layout"]["yaxis"]["tickvals"]
        assert labels[:2] == ["0 measured", "0 predicted"]
        assert places == sorted(places)
        assert len(labels) == 32
    assert "of 40 layers, 16 of 24 ranks" in page
    assert len(page) < 9e6


def test_every_figure_has_a_caption_and_titled_axes(cases):
    for figure in figures():
        assert figure.definition.endswith(".")
        for plot in figure.draw(cases["all"]).values():
            assert re.search(r"\((\S.*)\)$", plot.layout.xaxis.title.text)


def test_tables_of_objects_are_drawn_as_numbers(cases):
    run = cases["all"]
    assert render(
        dataclasses.replace(run, ranks=run.ranks.astype(object), faults=run.faults.astype(object))
    ) == render(run)


def test_folder_is_written_read_and_reported_again(cases, tmp_path, capsys):
    from simulator.cli.run import report

    executed_module.write(cases["faults"], tmp_path / "one", render)
    page = tmp_path / "one" / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    report([tmp_path / "one"])
    assert Cells(page.read_text(encoding="utf-8")).cells == Cells(before).cells
    capsys.readouterr()
    report([tmp_path / "one"], tmp_path / "page.html", as_json=True)
    assert (
        json.loads(capsys.readouterr().out)["verdict"]["headline"]
        == verdict(cases["faults"]).headline
    )
    (tmp_path / "run").mkdir()
    with pytest.raises(
        UserError, match=r"of moesim execute, and .*run of moesim run; name one such folder alone"
    ):
        report([tmp_path / "one", tmp_path / "run"])
    with pytest.raises(UserError, match=r"of moesim execute; name one such folder alone"):
        report([tmp_path / "one", tmp_path / "one"])
    (tmp_path / "one" / "steps.parquet").unlink()
    with pytest.raises(UserError, match="is not a whole results folder"):
        report([tmp_path / "one"])


@pytest.mark.parametrize(
    ("width", "theme"), [(1280, "light"), (390, "dark")], ids=["desk", "phone"]
)
@pytest.mark.parametrize("name", ["all", "faults", "one", "hostile", "many ranks"])
def test_it_opens_offline_and_draws_everything(browser, cases, name, width, theme, tmp_path):
    file = tmp_path / "page.html"
    page = render(cases[name])
    file.write_text(page, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=theme)
    context.set_offline(True)
    opened = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    opened.on(
        "console", lambda message: problems.append(message.text) if message.type != "log" else None
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(file.as_uri())
    opened.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.locator(".js-plotly-plot").count() == len(plots_of(page))
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
