"""The numbers of the scoreboard, on tables small enough to do by hand, and accuracy in one number
per cell: of rows that fits have seen, of unseen ones, and over time.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.config.calibration import load_calibration
from simulator.lab.report.scoreboard import render
from simulator.lab.results.scores import (
    SCORE_COLUMNS,
    TARGETS,
    Scoreboard,
    bands_hold,
    judge_targets,
    order_of,
    reasons,
    score,
    score_groups,
    target_of,
    worst,
)
from simulator.lab.validation import accuracy
from simulator.lab.validation.board import judge_left_out, list_fit_residuals, mix_residuals


def rows(*entries, suite="serving", quantity="tpot", group="h100 vllm MoE"):
    """``(measured, predicted, status)`` each; the band is 10 % either way."""
    made = pd.DataFrame(list(entries), columns=["measured", "predicted", "status"])
    given = {"suite": suite, "group": group, "quantity": quantity, "unit": "s"}
    ends = {"low": made["predicted"] * 0.9, "high": made["predicted"] * 1.1}
    made = made.assign(**given, **ends, subject=made.index.astype(str), source="table.csv")
    return made[[*SCORE_COLUMNS, "source"]]


def test_errors_are_relative_to_the_measurement_and_of_answered_rows_only():
    answered = [(1.0, 1.2, "ok"), (2.0, 1.0, "extrapolated: far")]
    others = [(1.0, np.nan, "unsupported: no"), (1.0, np.nan, "ok")]
    found = score(rows(*answered, *others), ["suite"]).iloc[0]
    wanted = {"rows": 4, "unsupported": 0.5, "extrapolated": 0.25, "covered": 0.0}
    wanted |= {"median": 0.35, "mean": 0.35, "bias": -0.15}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_groups_come_worst_first_and_are_held_to_their_targets():
    predicted = {"h100 vllm dense": 1.05, "h200 vllm dense": 1.12, "h200 vllm MoE": 1.11}
    made = [rows((1.0, value, "ok"), group=group) for group, value in predicted.items()]
    made.append(rows((1.0, np.nan, "unsupported: no"), group="b200 vllm MoE"))
    made.append(rows((1.0, 5.0, "ok"), suite="somebody's", group="theirs"))
    found = score_groups(pd.concat(made))
    assert found["group"].tolist()[:3] == ["h200 vllm dense", "h200 vllm MoE", "h100 vllm dense"]
    assert found.set_index("group")["within_target"].to_dict() == {
        "h100 vllm dense": True,
        "h200 vllm dense": False,
        "h200 vllm MoE": True,
        "b200 vllm MoE": None,
        "theirs": None,
    }


def test_every_target_is_reached_by_some_rows_and_no_group_has_two():
    for target in TARGETS:
        group = f"h100 {target.word}".strip()
        for suite in target.suites:
            assert target_of(suite, target.quantity or "kernel", group) == target
    assert target_of("serving", "tpot", "h100 vllm") is None
    assert target_of("published", "ratio", "wide EP gain") is None


def test_the_board_is_judged_by_shares_too():
    every = [(1.0, 1.05, "ok")] * 16 + [(1.0, 1.28, "ok")] * 4
    board = Scoreboard(
        {}, rows(*every), order=pd.DataFrame([{"suite": "serving", "pairs": 20, "right": 16}])
    )
    found = judge_targets(board).set_index("what")
    assert found["met"].to_dict() == {
        "Serving TPOT, MoE": True,
        "Rows of serving that are answered": True,
        "Order of two deployments of serving that differ by > 10 %": False,
        "80 % bands of serving hold": True,
    }
    assert found.loc["80 % bands of serving hold", "found"] == "80.0 %"
    assert judge_targets(Scoreboard({}, rows().iloc[:0])).empty
    narrow = judge_targets(Scoreboard({}, rows(*[(1.0, 1.5, "ok")] * 40))).set_index("what")
    assert not narrow.loc["80 % bands of serving hold", "met"]


def test_few_rows_are_no_verdict_on_bands_and_order():
    order = pd.DataFrame([{"suite": "serving", "pairs": 19, "right": 0}])
    board = Scoreboard({}, rows(*[(1.0, 1.5, "ok")] * 19), order=order)
    found = judge_targets(board).set_index("what")["met"]
    assert found["80 % bands of serving hold"] is None
    assert found["Order of two deployments of serving that differ by > 10 %"] is None


def test_bands_are_judged_with_room_for_chance():
    assert bands_hold(90, 100), "of bands that hold 85 %, one in ten holds so many"
    assert not bands_hold(900, 1000)
    assert bands_hold(68, 100)
    assert not bands_hold(680, 1000)


def test_a_row_with_two_measures_is_one_reason():
    refused = (1.0, np.nan, "unsupported: no model")
    both = pd.concat([rows(refused, quantity=quantity) for quantity in ("ttft", "tpot")])
    found = reasons(both, "unsupported")[["reason", "rows"]].to_dict("records")
    assert found == [{"reason": "no model", "rows": 1}]
    assert reasons(both, "extrapolated").empty


def test_the_worst_are_furthest_off_either_way():
    found = worst(
        rows((1.0, 1.9, "ok"), (1.0, 0.4, "ok"), (1.0, 1.0, "ok"), (1.0, np.nan, "unsupported")), 2
    )
    assert found["predicted"].tolist() == [0.4, 1.9]


def test_order_counts_pairs_of_the_same_load_that_differ():
    pairs = [(1.0, 1.0, "ok"), (2.0, 0.9, "ok"), (1.05, 3.0, "ok"), (9.0, 1.0, "ok")]
    made = rows(*pairs, (3.0, np.nan, "unsupported"))
    made["rival"] = ["h100 8"] * 3 + ["h200 8"] + ["h100 8"]
    assert order_of("serving", made) == {"suite": "serving", "pairs": 2, "right": 0}
    for nothing in (made.iloc[:0], made.drop(columns="rival"), made.assign(rival="")):
        assert order_of("serving", nothing) == {"suite": "serving", "pairs": 0, "right": 0}


@pytest.mark.parametrize("in_sample", [True, False])
def test_targets_are_judged_by_what_was_left_out_only_where_rows_are_in_sample(in_sample):
    table = {"suite": "serving", "source": "table.csv", "rows": 4, "in_sample": in_sample}
    figures = {"rows": 9, "fits": 2, "missed": 1, "median": 0.13, "p90": 0.2}
    stated = pd.DataFrame([{"what": "Serving TPOT, MoE", **figures}])
    made = rows(*[(1.0, 1.05, "ok")] * 4)
    board = Scoreboard({"tables": [table]}, made, left_out=stated)
    found = judge_targets(board).set_index("what").loc["Serving TPOT, MoE"]
    assert ("13.0 %" in found["left_out"]) == in_sample
    assert found["left_out_rows"] == 9 * in_sample
    assert found["met"] is not in_sample


def test_errors_of_fits_mix_by_rows():
    rng, drawn = np.random.default_rng(0), ((0.05, 6000), (0.2, 3000), (0.01, 1000))
    parts = [np.abs(rng.normal(0, scale, count)) for scale, count in drawn]
    rows_of = [(len(part), np.median(part), np.quantile(part, 0.9)) for part in parts]
    said = mix_residuals(pd.DataFrame(rows_of, columns=["rows", "median", "p90"]))
    whole = np.concatenate(parts)
    assert said == pytest.approx((np.median(whole), np.quantile(whole, 0.9)), rel=0.1)


def test_left_out_looks_at_calibrations_of_the_rows_gpus():
    calibrations = {name: load_calibration(name, "test") for name in ("hopper", "blackwell")}
    fits = list_fit_residuals(calibrations)

    def judge(*gpus):
        own = {"suite": "gemm", "quantity": "kernel"}
        made = [rows((1.0, 1.0, "ok"), group=f"{gpu} bf16", **own) for gpu in gpus]
        return judge_left_out(pd.concat(made), calibrations, fits)

    hopper = judge("h100")
    assert hopper["what"].tolist() == ["Dense GEMM kernels"]
    assert hopper["rows"].item() < judge("h100", "b200", "rubin")["rows"].item()
    assert judge("rubin").empty


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
