"""The accuracy page: it says the numbers, and opens offline in a browser, on a desk and on a
phone.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest

from simulator.lab.report.scoreboard import FIGURES, render
from simulator.lab.results.scores import (
    SCORE_COLUMNS,
    Scoreboard,
    judge_targets,
    reasons,
    score_groups,
)
from simulator.report.gallery import plots
from tests.report.pages import payload_of
from tests.report.windows import DESK, PHONE

pytestmark = pytest.mark.xdist_group("pages")  # one browser, and each page rendered once

HOSTILE = "<b>h100</b> & <script>alert(1)</script>"
SUITES = {
    "gemm": ("kernel", "s", 1e-5, ["h100 bf16", "b200 fp8_block"]),
    "moe": (
        "kernel",
        "s",
        1e-3,
        ["h100 sglang fp8_block balanced", "b200 trtllm nvfp4 power_law_1.2", HOSTILE],
    ),
    "serving": ("tpot", "s", 2e-2, ["h200_sxm sglang MoE fp8", "h100_sxm trtllm dense fp8"]),
    "published": ("throughput", "tokens/s", 2e4, ["MLPerf mixtral-8x7b offline"]),
}


def rows_of(suite, quantity, unit, size, groups, count=400):
    rng = np.random.default_rng(sum(map(ord, suite)))
    measured = size * np.exp(rng.normal(0, 1.5, count))
    predicted = measured * np.exp(rng.normal(0.02, 0.12, count))
    status = np.array(["ok"] * count, dtype=object)
    status[::7] = "extrapolated: m 123456 is above the measured 32768"
    status[::11] = "unsupported: no calibrated accelerator 'rubin'"
    status[::13] = f"unsupported: {HOSTILE}"
    nothing = np.char.startswith(status.astype(str), "unsupported")
    return pd.DataFrame(
        {
            "suite": suite,
            "group": [groups[i % len(groups)] for i in range(count)],
            "subject": [f"{i} (m {i}, n 64, k 128)" for i in range(count)],
            "quantity": quantity,
            "unit": unit,
            "measured": measured,
            "predicted": np.where(nothing, np.nan, predicted),
            "low": np.where(nothing, np.nan, predicted * 0.85),
            "high": np.where(nothing, np.nan, predicted * 1.18),
            "status": status,
            "source": f"somewhere/{suite}.csv.gz",
        }
    )


def board(suites=tuple(SUITES), count=400, **changes):
    rows = [rows_of(suite, *SUITES[suite], count=count) for suite in suites]
    fit = (
        "hopper",
        "gemm",
        "any bf16",
        "fitted",
        10626.0,
        0.055,
        0.149,
        0.003,
        0.905,
        1.13,
        "moesim calibrate published",
        "rows",
    )
    names = (
        "calibration",
        "table",
        "entry",
        "kind",
        "rows",
        "median",
        "p90",
        "bias",
        "low",
        "high",
        "command",
        "source",
    )
    run = {
        "command": "moesim validate",
        "versions": {"moesim": "0.1.0"},
        "tables": [
            {"suite": suite, "source": f"somewhere/{suite}.csv.gz", "rows": count}
            for suite in suites
        ],
        "skipped": {"notes.csv": "its columns are those of no suite"},
    }
    order = pd.DataFrame({"suite": ["serving"], "pairs": [200], "right": [185]})
    empty = pd.DataFrame(columns=[*SCORE_COLUMNS, "source"])
    return Scoreboard(
        run,
        pd.concat(rows, ignore_index=True) if rows else empty,
        pd.DataFrame([fit], columns=names),
        order,
        **changes,
    )


def test_it_says_the_numbers_and_escapes_the_names():
    made = board()
    page = render(made)
    for row in score_groups(made.rows).to_dict("records"):
        assert f"{100 * row['median']:.1f} %" in page
    for row in judge_targets(made).to_dict("records"):
        assert row["what"].replace("'", "&#39;").replace(">", "&gt;") in page
    assert re.findall(r"<th[^>]*>([^<]+)</th>", page.partition('id="furthest-off"')[2])[:3] == [
        "Measured",
        "Predicted",
        "Error",
    ]
    for said in (
        "92.5 %",
        "hopper: gemm",
        "its columns are those of no suite",
        "no calibrated accelerator &#39;rubin&#39;",
    ):
        assert said in page
    assert "<b>h100" not in page
    assert "<script>alert" not in page


def test_it_stays_small_and_says_what_it_left_out():
    few, many = render(board(count=600)), render(board(count=12_000))
    assert len(json.dumps(payload_of(many))) < 1.5 * len(json.dumps(payload_of(few))) < 1.5e6
    assert (
        f"gemm, {len(board(('gemm',), 12_000).rows.query('predicted.notna()')):,} rows"
        in json.dumps(payload_of(many)) + many
    )


@pytest.mark.parametrize("suites", [(), ("moe",)])
def test_it_is_made_of_whatever_was_answered(suites):
    assert "Accuracy" in render(board(suites))
    nothing = board(suites)
    unsupported = nothing.rows.assign(
        predicted=np.nan, low=np.nan, high=np.nan, status="unsupported: nothing is known"
    )
    page = render(Scoreboard(nothing.run, unsupported))
    assert "No measured row was answered" in page
    assert ("nothing is known" in page) == bool(suites)


def test_many_reasons_are_told_apart_without_their_numbers():
    rows = rows_of("gemm", *SUITES["gemm"], count=100)
    rows["status"] = [
        f"unsupported: {i} GPUs are not {'there' if i % 2 else 'known'}" for i in range(100)
    ]
    found = reasons(rows, "unsupported")
    assert dict(zip(found["reason"], found["rows"], strict=True)) == {
        "N GPUs are not there": 50,
        "N GPUs are not known": 50,
    }


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_opens_offline_and_draws_everything(open_page, tmp_path, viewport):
    made = board()
    file = tmp_path / "page.html"
    file.write_text(render(made), encoding="utf-8")
    shown = open_page(file, viewport)
    assert shown.problems == []
    opened = shown.page
    assert opened.locator(".js-plotly-plot").count() == sum(
        len(plots(figure, made)) for figure in FIGURES
    )
    assert shown.is_as_wide_as_shown
    drawn = opened.locator(".js-plotly-plot").first
    drawn.hover()
    right, last, buttons, top = drawn.evaluate(
        """plot => {
          const box = (of) => [...plot.querySelectorAll(of)].pop().getBoundingClientRect();
          const edge = plot.getBoundingClientRect().right;
          return [edge, box(".xtick text").right, box(".modebar").bottom, box(".nsewdrag").top];
        }"""
    )
    assert last <= right, "the last label is not cut"
    assert buttons <= top, "buttons hide no point"
