"""The page of ``moesim validate``: how far predictions are from measurements, with the targets first."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.report import scoreboard_tables, tables
from simulator.report.cards import Cards, drawn_sections
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.markup import Markup, tag
from simulator.report.scoreboard_figures import figures
from simulator.report.scoreboard_tables import percent
from simulator.scores import Scoreboard, is_answered, judged

_NAME = "Accuracy"
_MOST_MISSED = 6
_TARGETS = (
    "Errors are |predicted / measured - 1|. The targets are asked of models and GPUs that no calibration has seen; where rows here are "
    "those that a calibration was fitted on, its cross-validated errors below are the ones to compare."
)
_SCORES = "The groups of each suite, the largest median error first. Bias is the median of the signed error: above 0 predictions are too large."
_UNSUPPORTED = "Rows without an answer, by reason. Numbers in a suite's reasons are left out where there are too many to list."
_EXTRAPOLATED = "Rows that were answered from outside the measured domain, by reason; their bands are wider."
_WORST = "The rows of each suite whose prediction is furthest off, as a ratio either way. A row is named by its number, from 0, or its id."
_FITS = (
    "Every fit that is shipped or yours, with the errors that it states of itself: on measurements like those of the fit, with whole "
    "model shapes left out in turn."
)
_READ = "Tables of measurements are told apart by their columns."


def render(board: Scoreboard) -> str:
    """The page as one HTML document."""
    cards = Cards()
    sections: list[tuple[str, Markup]] = []
    if len(board.rows):
        sections.append(("Targets", described(_TARGETS, scoreboard_tables.targets_table(board))))
        sections += drawn_sections(cards, [(figure, figure.draw(board)) for figure in figures()])
        sections.append(("Errors by group", described(_SCORES, scoreboard_tables.scores_table(board))))
    further = {
        "What cannot be answered": (_UNSUPPORTED, scoreboard_tables.reasons_table(board, "unsupported")),
        "What is extrapolated": (_EXTRAPOLATED, scoreboard_tables.reasons_table(board, "extrapolated")),
        "Furthest off": (_WORST, scoreboard_tables.worst_table(board)),
        "What the calibrations say of themselves": (_FITS, scoreboard_tables.fits_table(board.fits)),
        "What was read": (_READ, scoreboard_tables.read_table(board.run)),
    }
    sections += [(title, described(lead, table)) for title, (lead, table) in further.items() if table is not None]
    sections.append(("How this was made", facts_list({"Command": board.run.get("command"), **tables.made_of(board.run)})))
    return document(_NAME, in_sections(_hero(board), sections), cards.payload)


def headline(board: Scoreboard) -> str:
    """The finding in a sentence."""
    answered = board.rows[is_answered(board.rows["status"]) & board.rows["predicted"].notna()] if len(board.rows) else board.rows
    if answered.empty:
        return "No measured row was answered, so there is no error to show."
    error = float(np.median(np.abs(answered["predicted"].to_numpy(float) / answered["measured"].to_numpy(float) - 1)))
    found = [bool(met) for met in judged(board)["met"] if met is not None]
    said = f"Half of {len(answered):,} predictions are within {percent(error)} of what was measured"
    return f"{said}; {sum(found)} of {len(found)} targets are met." if found else f"{said}."


def _hero(board: Scoreboard) -> Markup:
    return tag(
        "header",
        tag("p", "Predictions against measurements", class_="eyebrow"),
        tag("h1", headline(board)),
        tag("ul", *(tag("li", reason) for reason in _missed(board)), class_="reasons"),
        facts_list(_setting(board), "setting"),
    )


def _missed(board: Scoreboard) -> list[str]:
    """The targets that are not met."""
    if board.rows.empty:
        return []
    found = judged(board)
    missed = [
        f"Missed: {row['what']}: {row['found']}; asked: {row['asked']}." for row in found.to_dict("records") if row["met"] is False
    ]
    more = len(missed) - _MOST_MISSED
    return [*missed[:_MOST_MISSED], *([f"{more} further targets are missed; see below."] if more > 0 else [])]


def _setting(board: Scoreboard) -> dict[str, Any]:
    rows = board.rows
    if rows.empty:
        return {"Tables": len(board.run.get("tables", []))}
    return {
        "Tables": f"{len(board.run.get('tables', [])):,}",
        "Measured values": f"{len(rows):,}",
        "Answered": percent(float((is_answered(rows["status"]) & rows["predicted"].notna()).mean())),
        "Extrapolated": percent(float(rows["status"].str.startswith("extrapolated").mean())),
        "Skipped": f"{len(board.run.get('skipped', {})):,}",
    }
