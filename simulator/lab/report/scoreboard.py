"""The page of ``moesim validate``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.lab.report.scoreboard_tables import (
    group_fits,
    list_scores,
    list_targets,
    list_worst,
)
from simulator.report.deployment_tables import describe_making
from simulator.report.figure_cards import FigureCards
from simulator.report.gallery import load_figures
from simulator.report.rendering import render_page
from simulator.report.texts import keep_units, percent_beside
from simulator.results.judgement import IN_SAMPLE, judge_targets, tally
from simulator.results.scores import Scoreboard, is_answered, reasons, remarks, title_of

FIGURES = load_figures("report.scoreboard_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

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
        headline=headline(board),
        in_sample=IN_SAMPLE if in_sample else "",
        reasons=[*_list_missed(board), *remarks(board)],
        run=board.run,
        rows=board.rows,
        has_rows=has_rows,
        answered=_select_answered(board),
        targets=list_targets(board) if has_rows else [],
        drawn=cards.draw(shown, board) if has_rows else {},
        scores=list(list_scores(board)) if has_rows else [],
        unanswered={
            status: reasons(board.rows, status).to_dict("records")
            for status in ("unsupported", "extrapolated")
        },
        most_reasons=_MOST_REASONS,
        worst=list_worst(board),
        title_of=title_of,
        fits=group_fits(board.fits),
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
