"""The tables of the page of ``moesim validate``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from simulator.report.texts import keep_units
from simulator.results.judgement import judge_targets
from simulator.results.scores import Scoreboard, score, score_groups, title_of, worst

_MOST_GROUPS = 25
_WORST_ROWS = 3


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


def list_worst(board: Scoreboard) -> list[dict[Any, Any]]:
    """The rows that are furthest off, of each suite and quantity."""
    by_quantity = worst(board.rows, _WORST_ROWS).groupby(["suite", "quantity"], sort=False)
    return [row for _, own in by_quantity for row in own.to_dict("records")]


def group_fits(fits: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """Errors that calibrations state of themselves, by calibration and table."""
    if fits.empty:
        return {}
    return {
        f"{calibration}: {table}": own.to_dict("records")
        for (calibration, table), own in fits.groupby(["calibration", "table"], sort=False)
    }
