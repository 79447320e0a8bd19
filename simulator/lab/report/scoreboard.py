"""The page of ``moesim validate``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.formats import UNDEFINED
from simulator.lab.report.scoreboard_figures.errors import amount
from simulator.lab.results.judgement import IN_SAMPLE, digits_beside, judge_targets, tally
from simulator.lab.results.scores import (
    Scoreboard,
    is_answered,
    list_suites,
    reasons,
    remarks,
    title_of,
    worst,
)
from simulator.report.deployment_tables import describe_making
from simulator.report.front import make_front
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.rendering import render_page

FIGURES = load_figures("report.scoreboard_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_MOST_GROUPS = 25
_WORST_ROWS = 3
_MOST_MISSED = 6
_MOST_REASONS = 40


def render(board: Scoreboard) -> str:
    """The page as one HTML document."""
    cards, has_rows, in_sample = FigureCards(), bool(len(board.rows)), board.in_sample()
    shown = [figure for figure in FIGURES if figure.section != "History" or len(board.history)]
    return render_page(
        "scoreboard.html",
        "Accuracy",
        cards,
        amount=amount,
        percent_beside=percent_beside,
        front=make_front(
            "Predictions against measurements",
            {"headline": headline(board), "reasons": [*_list_missed(board), *remarks(board)]},
        ),
        in_sample=IN_SAMPLE if in_sample else "",
        run=board.run,
        rows=board.rows,
        has_rows=has_rows,
        answered=_select_answered(board),
        targets=_list_targets(board) if has_rows else [],
        drawn=cards.draw(shown, board) if has_rows else {},
        scores=list(_list_scores(board)) if has_rows else [],
        unanswered={
            status: reasons(board.rows, status).to_dict("records")
            for status in ("unsupported", "extrapolated")
        },
        most_reasons=_MOST_REASONS,
        worst=_list_worst(board),
        title_of=title_of,
        fits=_group_fits(board.fits),
        num_fits=len(board.fits),
        making=describe_making(board.run),
    )


def _select_answered(board: Scoreboard) -> pd.DataFrame:
    """Rows that have a prediction."""
    if board.rows.empty:
        return board.rows
    return board.rows[is_answered(board.rows["status"]) & board.rows["predicted"].notna()]


def headline(board: Scoreboard) -> str:
    """The finding in a sentence."""
    answered = _select_answered(board)
    if answered.empty:
        return "No measured row was answered, so there is no error to show."
    error = float(
        np.median(
            np.abs(answered["predicted"].to_numpy(float) / answered["measured"].to_numpy(float) - 1)
        )
    )
    found = tally(judge_targets(board))
    within = percent_beside(error)
    said = f"Half of {len(answered):,} predictions are within {within} of what was measured"
    if board.in_sample():
        said += ", in sample" if board.is_in_sample(board.rows).all() else ", partly in sample"
    return f"{said}; {found}." if found else f"{said}."


def _list_missed(board: Scoreboard) -> list[str]:
    """The targets that are not met, by the errors that they are judged by."""
    if board.rows.empty:
        return []
    missed = []
    for row in judge_targets(board).to_dict("records"):
        if row["met"] is False:
            found = row["found"]
            if row["left_out"] and row["in_sample"]:
                others = f"{row['left_out_rows']:,} rows with models left out"
                found = f"{row['left_out']} of {others} ({found} in sample)"
            missed.append(keep_units(f"Missed: {row['what']}: {found}; asked: {row['asked']}."))
    if (more := len(missed) - _MOST_MISSED) > 0:
        missed[_MOST_MISSED:] = [f"{more} further targets are missed; see below."]
    return missed


def _list_targets(board: Scoreboard) -> list[dict[Any, Any]]:
    """Targets that the rows can be held to, as :func:`judge_targets`
    has them, errors as median / 90th percentile, each number and its unit on one line.
    """
    rows = judge_targets(board).to_dict("records")
    for row in rows:
        row |= {key: _shorten_errors(row[key]) for key in ("what", "asked", "found", "left_out")}
    return rows


def _shorten_errors(text: str) -> str:
    """Errors as the median / the 90th percentile."""
    return keep_units(text.replace("median ", "").replace(", p90", " /"))


def _list_scores(board: Scoreboard) -> Iterator[dict[Any, Any]]:
    """Rows of errors: each suite's own numbers, then its groups, the worst first."""
    no_target = {"target_median": math.nan, "target_p90": math.nan, "within_target": None}
    for title, total, groups in list_suites(board):
        own = groups.to_dict("records")
        first = own[0] if len(own) == 1 else total | no_target
        yield first | {"title": title, "is_total": True, "num_more": 0}
        if len(own) > 1:
            more = [0] * (min(len(own), _MOST_GROUPS) - 1) + [max(len(own) - _MOST_GROUPS, 0)]
            for row, num_more in zip(own, more, strict=False):
                title = str(row["group"]) or "all"
                yield row | {"title": title, "is_total": False, "num_more": num_more}


def _list_worst(board: Scoreboard) -> list[dict[Any, Any]]:
    """The rows that are furthest off, of each suite and quantity."""
    by_quantity = worst(board.rows, _WORST_ROWS).groupby(["suite", "quantity"], sort=False)
    return [row for _, own in by_quantity for row in own.to_dict("records")]


def _group_fits(fits: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """Errors that calibrations state of themselves, by calibration and table."""
    if fits.empty:
        return {}
    return {
        f"{calibration}: {table}": own.to_dict("records")
        for (calibration, table), own in fits.groupby(["calibration", "table"], sort=False)
    }


def percent_beside(value: float, *limits: float, digits: int = 1, signed: bool = False) -> str:
    """A share or an error, with as many digits as show on which side of a limit it lies.

    >>> percent_beside(0.0812), percent_beside(0.5, signed=True), percent_beside(12.34)
    ('8.1 %', '+50.0 %', '1,234 %')
    >>> percent_beside(0.25004, 0.25)
    '25.004 %'
    """
    if not math.isfinite(value):
        return UNDEFINED
    digits = digits_beside(value, *limits, digits=0 if abs(value) >= 1 else digits)
    text = f"{100 * value:{'+' if signed else ''},.{digits}f} %"
    return text.replace("-", "\N{MINUS SIGN}")


def keep_units(text: str) -> str:
    """A text with every number and its percent sign on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")
