"""The tables of the page of ``moesim validate``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.report.texts import keep_units
from simulator.results.formats import UNDEFINED, count, number, seconds
from simulator.results.judgement import judge_targets
from simulator.results.scores import Scoreboard, score, score_groups, title_of, worst

_MOST_GROUPS = 25
_WORST_ROWS = 3
WORDS = {
    "Median, mean, 90th percentile": "of the absolute error, |predicted / measured - 1|",
    "Bias": "median of predicted / measured - 1: above 0 predictions are too large",
    "Answered": (
        "a row with a prediction: ok, or extrapolated from outside what was measured, "
        "with a wider band; the rest are unsupported"
    ),
    "In band": (
        "share of answered rows whose measurement lies between the prediction's low and high; "
        "bands are meant to hold 80 %"
    ),
    "Target": "median and 90th percentile that are asked of the absolute error",
    "Within target here": (
        "whether the errors on these rows are, in sample or not; "
        "the table of targets says which are met"
    ),
}
"""Meanings of the headings of the table of errors."""


def list_targets(board: Scoreboard) -> list[dict[Any, Any]]:
    """Targets that the rows can be held to, as :func:`~simulator.results.judgement.judge_targets`
    has them, errors as median / 90th percentile, each number and its unit on one line.
    """
    rows = judge_targets(board).to_dict("records")
    for row in rows:
        row |= {key: _shorten_errors(row[key]) for key in ("what", "asked", "found", "left_out")}
    return rows


def _shorten_errors(text: str) -> str:
    """Errors as the median / the 90th percentile."""
    return keep_units(text.replace("median ", "").replace(", p90", " /"))


def list_scores(board: Scoreboard) -> Iterator[dict[Any, Any]]:
    """Rows of errors: each suite's own numbers, then its groups, the worst first."""
    by_group = score_groups(board.rows)
    no_target = {"target_median": math.nan, "target_p90": math.nan, "within_target": None}
    for total in score(board.rows, ["suite", "quantity"]).to_dict("records"):
        is_own = by_group["suite"].eq(total["suite"]) & by_group["quantity"].eq(total["quantity"])
        own = by_group[is_own].to_dict("records")
        title = title_of(total["suite"], total["quantity"])
        if board.in_sample(board.rows[board.rows["suite"] == total["suite"]]):
            title = f"{title}, in sample"
        first = own[0] if len(own) == 1 else total | no_target
        yield first | {"title": title, "is_total": True, "num_more": 0}
        if len(own) > 1:
            more = [0] * (min(len(own), _MOST_GROUPS) - 1) + [max(len(own) - _MOST_GROUPS, 0)]
            for row, num_more in zip(own, more, strict=False):
                title = str(row["group"]) or "all"
                yield row | {"title": title, "is_total": False, "num_more": num_more}


def list_worst(board: Scoreboard) -> list[dict[str, Any]]:
    """The rows that are furthest off, of each suite and quantity."""
    return [
        {
            "measured": _amount(float(row["measured"]), str(row["unit"])),
            "predicted": _amount(float(row["predicted"]), str(row["unit"])),
            "error": float(row["predicted"]) / float(row["measured"]) - 1,
            "suite": title_of(str(suite), str(quantity)),
            "group": str(row["group"]),
            "row": f"{Path(row['source']).name}: {row['subject']}"
            if row.get("source")
            else row["subject"],
            "status": str(row["status"]),
        }
        for (suite, quantity), own in worst(board.rows, _WORST_ROWS).groupby(
            ["suite", "quantity"], sort=False
        )
        for row in own.to_dict("records")
    ]


def _amount(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else f"{number(value)} {unit}"


def group_fits(fits: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """Errors that calibrations state of themselves, by calibration and table."""
    if fits.empty:
        return {}
    return {
        f"{calibration}: {table}": own.to_dict("records")
        for (calibration, table), own in fits.groupby(["calibration", "table"], sort=False)
    }


def list_read(run: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Tables with their suites and what was read of them, or why nothing was."""
    for entry in run.get("tables", []):
        yield entry["source"], entry["suite"], _describe_rows(entry)
    for name, why in run.get("skipped", {}).items():
        yield name, UNDEFINED, why


def _describe_rows(entry: dict[str, Any]) -> str:
    fitted = " that a calibration was fitted on" if entry.get("in_sample") else ""
    unusable = [
        f"{number:,} without a usable {column}"
        for column, number in entry.get("unusable", {}).items()
    ]
    return "; ".join([count(entry["rows"], "row") + fitted, *unusable])
