"""The page as HTML: complete, offline, escaped, and saying the numbers of summary.csv."""

from __future__ import annotations

import csv
import json
import math
import re

import pytest

from simulator.report.page import render
from simulator.results import metrics
from simulator.results.folder import Results
from simulator.results.metrics import METRICS
from simulator.results.sampled_steps import chrome_trace
from tests.report.pages import BYTES_OF_A_DEPLOYMENT, FEW_DEPLOYMENTS, MOST_BYTES, Cells, payload_of
from tests.report.small_runs import RUNS

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once


@pytest.fixture(scope="module")
def page(page_of) -> str:
    return page_of("plain")


@pytest.mark.parametrize("name", RUNS)
def test_every_run_renders(page_of, runs, name):
    run, page = runs[name], page_of(name)
    assert page.startswith("<!doctype html>")
    beyond = max(0, len(run.deployments) - FEW_DEPLOYMENTS)
    assert len(page.encode()) <= MOST_BYTES + beyond * BYTES_OF_A_DEPLOYMENT


@pytest.mark.parametrize("name", ["plain", "one request", "bare"])
def test_numbers_are_those_of_the_summary(page_of, runs, name, tmp_path):
    run: Results = runs[name]
    run.summary.to_csv(tmp_path / "summary.csv", index=False)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = {row["deployment"]: row for row in csv.DictReader(file)}
    cells = Cells(page_of(name)).cells
    said = {(cell["data-deployment"], cell["data-metric"]) for cell in cells}
    assert said == {(deployment, metric) for deployment in rows for metric in METRICS}
    for cell in cells:
        value, written = (
            float(cell["data-value"] or "nan"),
            rows[cell["data-deployment"]][cell["data-metric"]],
        )
        if written == "":
            assert math.isnan(value)
        else:
            assert value == float(written)


def test_undefined_numbers_are_dashes(page_of):
    page = page_of("one request")
    cells = re.findall(r'<td data-metric="tpot_p99_s"[^>]*data-value="nan">(.*?)</td>', page)
    assert cells == [metrics.UNDEFINED] * 4


def test_best_value_is_marked_only_where_there_is_one(page_of):
    assert 'class="best"' in page_of("plain")
    assert 'class="best"' not in page_of("single")


def test_verdict_comes_first(page, runs):
    order = [
        page.index(f">{title}<")
        for title in ("Key numbers", "Comparison", "Models and deployments", "All metrics")
    ]
    assert page.index("<h1>") < order[0]
    assert order == sorted(order)


def test_user_text_is_escaped(page_of, hostile_name):
    page = page_of("hostile")
    assert "<script>alert" not in page
    assert "<b>bold</b>" not in page
    assert page.count("<script") == 3
    assert hostile_name in "".join(Cells(page).words)


def test_full_run_leaves_nothing_out(page):
    assert "Not drawn for this run" not in page


def test_payload_is_json(page):
    plots = payload_of(page)["plots"]
    assert len({plot["id"] for plot in plots}) == len(plots) > 10
    assert all("template" not in plot["layout"] for plot in plots)


def test_chrome_trace_is_valid(runs):
    made = chrome_trace(runs["plain"].spans, lambda *which: " ".join(which))
    trace = json.loads(json.dumps(made, allow_nan=False))
    assert trace["traceEvents"]
    last: dict[tuple[int, int], float] = {}
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int)
        assert event["name"]
        if event["name"] != "process_name":
            assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            track = (event["pid"], event["tid"])
            assert event["ts"] >= last.get(track, 0.0)
            assert event["dur"] >= 0
            last[track] = event["ts"]


def test_results_folder_holds_the_page(page_of, runs, tmp_path):
    runs["plain"].write(tmp_path / "run", render)
    again = Results.read(tmp_path / "run")
    assert again.deployments == runs["plain"].deployments
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == page_of("plain")
    assert render(again)
