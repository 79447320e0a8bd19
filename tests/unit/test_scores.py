"""The numbers of the scoreboard, on tables small enough to do by hand."""

import numpy as np
import pandas as pd
import pytest

from simulator.scores import (
    DENSE,
    MOE,
    SCORE_COLUMNS,
    TARGETS,
    Scoreboard,
    grouped,
    judged,
    order_of,
    reasons,
    score,
    target_of,
    worst,
)


def rows(*entries, suite="serving", quantity="tpot", group="h100 vllm MoE"):
    """``(measured, predicted, status)`` each; the band is 10 % either way."""
    return pd.DataFrame(
        [
            (suite, group, str(i), quantity, "s", measured, predicted, predicted * 0.9, predicted * 1.1, status)
            for i, (measured, predicted, status) in enumerate(entries)
        ],
        columns=list(SCORE_COLUMNS),
    ).assign(source="table.csv")


def test_errors_are_relative_to_the_measurement_and_of_answered_rows_only():
    found = score(
        rows((1.0, 1.2, "ok"), (2.0, 1.0, "extrapolated: far"), (1.0, np.nan, "unsupported: no"), (1.0, np.nan, "ok")), ["suite"]
    )
    assert found["rows"].item() == 4
    assert found["unsupported"].item() == 0.5
    assert found["extrapolated"].item() == 0.25
    assert found["median"].item() == pytest.approx(0.35)
    assert found["mean"].item() == pytest.approx(0.35)
    assert found["bias"].item() == pytest.approx(-0.15)
    assert found["covered"].item() == 0.0


def test_groups_come_worst_first_and_are_held_to_their_targets():
    made = pd.concat(
        [
            rows((1.0, 1.05, "ok"), group="h100 vllm dense"),
            rows((1.0, 1.11, "ok"), group="h200 vllm dense"),
            rows((1.0, 1.11, "ok"), group="h200 vllm MoE"),
            rows((1.0, np.nan, "unsupported: no"), group="b200 vllm MoE"),
            rows((1.0, 5.0, "ok"), suite="somebody's"),
        ]
    )
    found = grouped(made)
    assert found["group"].tolist()[2] == "h100 vllm dense"
    met = dict(zip(found["group"].where(found["suite"] == "serving", "theirs"), found["met"], strict=True))
    assert met == {
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
    every = [(1.0, 1.05, "ok")] * 8 + [(1.0, 1.28, "ok")] * 2
    board = Scoreboard({}, rows(*every), order=pd.DataFrame([{"suite": "serving", "pairs": 10, "right": 8}]))
    found = judged(board).set_index("what")
    assert found["met"].to_dict() == {
        "Serving TPOT, MoE": True,
        "Rows of serving that are answered": True,
        "Order of two deployments of serving that differ by > 10 %": False,
        "80 % bands of serving hold": True,
    }
    assert found.loc["80 % bands of serving hold", "found"] == "80.0 %"
    assert judged(Scoreboard({}, rows().iloc[:0])).empty
    narrow = judged(Scoreboard({}, rows(*[(1.0, 1.5, "ok")] * 4))).set_index("what")
    assert not narrow.loc["80 % bands of serving hold", "met"]


def test_a_row_with_two_measures_is_one_reason():
    both = pd.concat([rows((1.0, np.nan, "unsupported: no model"), quantity=quantity) for quantity in ("ttft", "tpot")])
    assert reasons(both, "unsupported")[["reason", "rows"]].to_dict("records") == [{"reason": "no model", "rows": 1}]
    assert reasons(both, "extrapolated").empty


def test_the_worst_are_furthest_off_either_way():
    found = worst(rows((1.0, 1.9, "ok"), (1.0, 0.4, "ok"), (1.0, 1.0, "ok"), (1.0, np.nan, "unsupported")), 2)
    assert found["predicted"].tolist() == [0.4, 1.9]


def test_order_counts_pairs_of_the_same_load_that_differ():
    made = rows((1.0, 1.0, "ok"), (2.0, 0.9, "ok"), (1.05, 3.0, "ok"), (9.0, 1.0, "ok"), (3.0, np.nan, "unsupported"))
    load = [("h100", 8)] * 3 + [("h200", 8)] + [("h100", 8)]
    assert order_of("serving", made, load) == {"suite": "serving", "pairs": 2, "right": 0}
    assert order_of("serving", made.iloc[:0], []) == {"suite": "serving", "pairs": 0, "right": 0}


def test_words_of_groups_are_whole():
    assert target_of("serving", "tpot", f"h100 {MOE}s") is None
    assert target_of("serving", "tpot", f"{DENSE} h100") is not None
