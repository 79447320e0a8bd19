"""Accuracy in one number per cell: of rows that fits have seen, of unseen ones, and over time."""

import json

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.report.scoreboard import render
from simulator.results.scores import SCORE_COLUMNS, Scoreboard
from simulator.validation import accuracy

RUN = {
    "started": "2026-05-04T10:00:00+00:00",
    "revision": "abc1234",
    "versions": {"moesim": "0.2.0"},
    "tables": [{"suite": "gemm", "source": "gemm.csv", "rows": 4, "in_sample": True}],
}


def make_board(**changes):
    errors = [0.1, -0.1, 0.2, 0.4]
    rows = [
        (
            "gemm",
            "h100 bf16",
            str(n),
            "kernel",
            "s",
            1.0,
            1 + e,
            (1 + e) / 1.3,
            1.5,
            "ok",
            "gemm.csv",
        )
        for n, e in enumerate(errors)
    ]
    figure = ("throughput", "tokens/s", 100.0, 90.0, 80.0, 110.0, "ok", "shipped cases")
    refused = ("imbalance", "x", 1.0, np.nan, np.nan, np.nan, "unsupported: no", "shipped cases")
    rows += [
        ("published", "MLPerf x offline", "a", *figure),
        ("published", "routing skew", "b", *refused),
    ]
    left_out = pd.DataFrame(
        [("Dense GEMM kernels", 3, 1, 0, 0.15, 0.45)],
        columns=["what", "rows", "fits", "missed", "median", "p90"],
    )
    table = pd.DataFrame(rows, columns=[*SCORE_COLUMNS, "source"])
    return Scoreboard({**RUN, **changes}, table, left_out=left_out)


def test_rows_in_sample_and_models_left_out_stand_apart():
    table = accuracy.accuracy_table(make_board()).set_index("what")
    gemm = table.loc["Dense GEMM kernels"]
    assert (gemm["rows"], gemm["median"], gemm["covered"]) == (4, pytest.approx(0.15), 0.75)
    assert (gemm["unseen_rows"], gemm["unseen_median"], gemm["unseen_p90"]) == (3, 0.15, 0.45)
    seen = accuracy.accuracy_table(make_board(tables=[])).set_index("what").loc[gemm.name]
    assert np.isnan(seen["median"])
    assert seen["unseen_median"] == 0.15
    figure = table.loc["Published throughput"]
    assert np.isnan(figure["median"])
    assert (figure["unseen_rows"], figure["unseen_median"]) == (1, pytest.approx(0.1))
    assert np.isnan(table.loc["routing skew: imbalance", "unseen_median"])


def test_a_cell_holds_one_number():
    text = accuracy.update_document("", make_board())
    cells = [cell.strip() for line in text.splitlines() if "|" in line for cell in line.split("|")]
    assert "15.0 %" in cells
    assert "\N{EN DASH}" in cells
    for cell in cells:
        assert len([word for word in cell.split() if word.replace(".", "").isdigit()]) <= 1, cell


def test_only_marked_parts_of_a_document_are_replaced():
    document = accuracy.update_document("# Accuracy\n\nWords.\n", make_board())
    assert document.startswith("# Accuracy\n\nWords.\n\n<!-- accuracy: measured -->")
    document += "\nMore words.\n"
    stale = document.replace("15.0 %", "99.0 %")
    assert stale != document
    assert accuracy.update_document(stale, make_board()) == document
    board = make_board()
    alone = Scoreboard(RUN, board.rows[board.rows["suite"] == "published"])
    kept = accuracy.update_document(stale, alone)
    assert kept == stale, "measured tables stay where none were given"


def test_a_history_grows_by_a_line_and_is_drawn(tmp_path):
    path = tmp_path / "history" / "accuracy.jsonl"
    assert accuracy.read_history(path).empty
    accuracy.append_history(path, make_board())
    accuracy.append_history(path, make_board(started="2026-05-05T10:00:00+00:00"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["revision"] for line in lines] == ["abc1234"] * 2
    history = accuracy.read_history(path)
    assert history["date"].nunique() == 2
    assert set(history["what"]) == set(accuracy.accuracy_table(make_board())["what"])
    board = make_board()
    drawn = Scoreboard(RUN, board.rows, history=history)
    assert "Median error over time" in render(drawn)
    assert "Median error over time" not in render(board)


@pytest.mark.parametrize("line", ["{", "[]", '{"date": "x"}', '{"date": 1, "revision": 2}'])
def test_a_damaged_history_is_refused(tmp_path, line):
    (tmp_path / "accuracy.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is no entry"):
        accuracy.read_history(tmp_path / "accuracy.jsonl")
