"""Accuracy in one number per cell: of rows that fits have seen, of unseen ones, and over time."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.lab.report.scoreboard import render
from simulator.lab.results.scores import SCORE_COLUMNS, Scoreboard
from simulator.lab.validation import accuracy

RUN = {
    "started": "2026-05-04T10:00:00+00:00",
    "revision": "abc1234",
    "versions": {"moesim": "0.2.0"},
    "tables": [{"suite": "gemm", "source": "gemm.csv", "rows": 4, "in_sample": True}],
}


def make_rows(predicted, **columns):
    """Rows of a GPU's products that took a second each, with bands of 30 % either way."""
    predicted = np.asarray(predicted, dtype=float)
    rows = pd.DataFrame(index=range(len(predicted)), columns=[*SCORE_COLUMNS, "source"])
    given = {
        **{"suite": "gemm", "group": "h100 bf16", "quantity": "kernel", "unit": "s"},
        **{"status": "ok", "source": "gemm.csv", "rival": ""},
    }
    numbers = {"measured": 1.0, "predicted": predicted}
    rows = rows.assign(**given, **numbers, low=predicted / 1.3, high=predicted * 1.3)
    rows["subject"] = [str(place) for place in range(len(rows))]
    refused = np.isnan(predicted)
    rows["status"] = np.where(refused, "unsupported: no fit of 3 rows", "ok")
    return rows.assign(**columns)


SEEN, MODEL, GPU = [1.1, 0.9, 1.2, 1.4], [1.1, 1.2, 1.5, np.nan], [2.0, 0.5, 1.0, 1.25]


def make_board(**changes):
    published = {"suite": "published", "source": "shipped cases"}
    figures = [
        make_rows([0.9], group="MLPerf x offline", quantity="throughput", **published),
        make_rows([np.nan], group="routing skew", quantity="imbalance", **published),
    ]
    rows = pd.concat([make_rows(SEEN), *figures], ignore_index=True)
    unseen = pd.concat(
        [
            make_rows(
                MODEL, case="model", without="llama", rival="one load", measured=[1, 2, 1, 1]
            ),
            make_rows(GPU, case="gpu", without="h100-sxm"),
        ],
        ignore_index=True,
    )
    fits = pd.DataFrame({"table": ["gemm"], "gpus": [("h100-sxm",)]})
    return Scoreboard({**RUN, **changes}, rows, fits, unseen=unseen)


def cells_of(text, first, second):
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} | {second} |"))
    return [cell.strip() for cell in line.split("|")[3:-1]]


def test_known_errors_give_known_figures_in_every_column():
    table = accuracy.accuracy_table(make_board())
    gemm = table[(table["what"] == "Dense GEMM kernels") & (table["without"] == "")]
    found = gemm.set_index("case")
    assert found["rows"].tolist() == [4, 4, 4, 0]
    assert found.loc["", ["refused", "answered", "covered"]].tolist() == [0, 1.0, 0.75]
    assert found.loc["", "median"] == pytest.approx(0.15)
    assert found.loc["", "p90"] == pytest.approx(0.34)
    assert found.loc["model", ["refused", "answered"]].tolist() == [1, 0.75]
    assert found.loc["model", "covered"] == pytest.approx(1 / 3)
    assert found.loc["model", "ordered"] == 0.5, "of 1, 2 and 1 second two pairs differ"
    assert found.loc["gpu", "covered"] == 0.5
    assert found.loc["release", list(accuracy.FIGURES)[1:]].isna().all()
    assert np.isnan(found.loc["gpu", "ordered"])
    text = accuracy.update_document("", make_board())
    assert cells_of(text, "Dense GEMM kernels", "inside the 80 % band")[:3] == [
        *("75.0 %", "33.3 %", "50.0 %")
    ]


def test_answered_and_refused_are_all_rows():
    board = make_board()
    table = accuracy.accuracy_table(board)
    assert (table["rows"] - table["refused"] == (table["answered"] * table["rows"]).fillna(0)).all()
    assert cells_of(accuracy.update_document("", board), "Dense GEMM kernels", "rows answered") == [
        *("100.0 %", "75.0 %", "100.0 %", "\N{EN DASH}", "1")
    ]
    refused = accuracy.count_refusals(board)
    assert refused.values.tolist() == [["no fit of N rows", "left out by whole model", 1]]


def test_rows_of_gpus_without_a_fit_stand_apart():
    board = make_board()
    others = make_rows([3.0, 3.0], group="a100 bf16")
    board = replace(board, rows=pd.concat([board.rows, others], ignore_index=True))
    text = accuracy.update_document("", board)
    assert cells_of(text, "Dense GEMM kernels", "a100")[:4] == ["2", "0", "100.0 %", "200.0 %"]
    assert cells_of(text, "Dense GEMM kernels", "h100-sxm, left out")[0] == "4"
    assert cells_of(text, "Dense GEMM kernels", "rows")[0] == "4", "those in the fits, alone"
    foreign = replace(make_board(tables=[]), unseen=pd.DataFrame())
    text = accuracy.update_document("", foreign)
    assert cells_of(text, "Dense GEMM kernels", "h100")[0] == "4", "of no table that was fitted"
    assert cells_of(text, "Dense GEMM kernels", "rows")[0] == "0"


def test_what_calibrations_state_of_models_left_out_is_shown_where_nothing_was_refitted():
    stated = pd.DataFrame(
        [("Dense GEMM kernels", 3, 1, 0, 0.15, 0.45, 0.7)],
        columns=["what", "rows", "fits", "missed", "median", "p90", "covered"],
    )
    board = replace(make_board(), unseen=pd.DataFrame(), left_out=stated)
    text = accuracy.update_document("", board)
    for figure, cell in (
        ("rows", "3"),
        ("error: median", "15.0 %"),
        ("inside the 80 % band", "70.0 %"),
    ):
        assert cells_of(text, "Dense GEMM kernels", figure)[1] == cell


def test_published_figures_are_of_nothing_fitted():
    text = accuracy.update_document("", make_board())
    assert "| what | figures | median | 90th | in 80 % band | how to see it |" in text
    assert "| Published throughput | 1 | 10.0 % | 10.0 % | 100.0 % |" in text
    assert "| routing skew: imbalance | 1 | \N{EN DASH} |" in text


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
    assert "Median error over time" not in render(replace(drawn, history=pd.DataFrame()))


@pytest.mark.parametrize("line", ["{", "[]", '{"date": "x"}', '{"date": 1, "revision": 2}'])
def test_a_damaged_history_is_refused(tmp_path, line):
    (tmp_path / "accuracy.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is no entry"):
        accuracy.read_history(tmp_path / "accuracy.jsonl")
