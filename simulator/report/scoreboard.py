"""The page of ``moesim validate``: how far predictions are from measurements, with the targets
first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.report import scoreboard_tables, tables
from simulator.report.cards import Cards, drawn_sections
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.markup import Markup, join, tag
from simulator.report.scoreboard_figures import figures
from simulator.report.scoreboard_tables import percent
from simulator.results.judgement import IN_SAMPLE, judged, tally
from simulator.results.scores import Scoreboard, is_answered, remarks

_NAME = "Accuracy"
_MOST_MISSED = 6
_TARGETS = "Errors are median / 90th percentile of |predicted / measured - 1|."
_IN_SAMPLE = (
    "In sample is what was found on rows that the calibrations were fitted on. "
    "A target is then met if the figure with models left out of the fits is within what is asked, "
    "or, where there is none, the one on the rows. Where many fits make up a figure, "
    "it is put together from their medians and 90th percentiles by rows. Of serving points, "
    "it is that of aggregated ones."
)
_SCORES = "The groups of each suite, the largest median error first."
_UNSUPPORTED = (
    "Rows without an answer, by reason. Numbers in a suite's reasons are left out where "
    "there are too many to list."
)
_EXTRAPOLATED = (
    "Rows that were answered from outside the measured domain, by reason; their bands are wider."
)
_WORST = (
    "The rows of each suite whose prediction is furthest off, as a ratio either way. "
    "A row is named by its number, from 0, or its id."
)
_FITS = (
    "Every fit that is shipped or yours, with the errors that it states of itself: "
    "on measurements like those of the fit, with whole model shapes left out in turn."
)
_READ = "Tables of measurements are told apart by their columns."


def render(board: Scoreboard) -> str:
    """The page as one HTML document."""
    cards = Cards()
    sections: list[tuple[str, Markup]] = []
    if len(board.rows):
        lead = f"{_TARGETS} {_IN_SAMPLE}" if board.in_sample() else _TARGETS
        sections.append(("Targets", described(lead, scoreboard_tables.targets_table(board))))
        sections += drawn_sections(cards, figures(), board)
        sections.append(
            (
                "Errors by group",
                described(
                    _SCORES,
                    join([scoreboard_tables.legend(), scoreboard_tables.scores_table(board)]),
                ),
            )
        )
    further = {
        "What cannot be answered": (
            _UNSUPPORTED,
            scoreboard_tables.reasons_table(board, "unsupported"),
        ),
        "What is extrapolated": (
            _EXTRAPOLATED,
            scoreboard_tables.reasons_table(board, "extrapolated"),
        ),
        "Furthest off": (_WORST, scoreboard_tables.worst_table(board)),
        "What the calibrations say of themselves": (
            _FITS,
            scoreboard_tables.fits_table(board.fits),
        ),
        "What was read": (_READ, scoreboard_tables.read_table(board.run)),
    }
    sections += [
        (title, described(lead, table))
        for title, (lead, table) in further.items()
        if table is not None
    ]
    sections.append(
        (
            "How this was made",
            facts_list({"Command": board.run.get("command"), **tables.made_of(board.run)}),
        )
    )
    return document(_NAME, in_sections(_hero(board), sections), cards.payload)


def headline(board: Scoreboard) -> str:
    """The finding in a sentence."""
    answered = (
        board.rows[is_answered(board.rows["status"]) & board.rows["predicted"].notna()]
        if len(board.rows)
        else board.rows
    )
    if answered.empty:
        return "No measured row was answered, so there is no error to show."
    error = float(
        np.median(
            np.abs(answered["predicted"].to_numpy(float) / answered["measured"].to_numpy(float) - 1)
        )
    )
    found = tally(judged(board))
    said = f"Half of {len(answered):,} predictions are within {percent(error)} of what was measured"
    if board.in_sample():
        said += ", in sample" if board.is_in_sample(board.rows).all() else ", partly in sample"
    return f"{said}; {found}." if found else f"{said}."


def _hero(board: Scoreboard) -> Markup:
    return tag(
        "header",
        tag("p", "Predictions against measurements", class_="eyebrow"),
        tag("h1", headline(board)),
        *([tag("p", IN_SAMPLE, class_="lead")] if board.in_sample() else []),
        tag(
            "ul",
            *(tag("li", reason) for reason in [*_missed(board), *remarks(board)]),
            class_="reasons",
        ),
        facts_list(_setting(board), "setting"),
    )


def _missed(board: Scoreboard) -> list[str]:
    """The targets that are not met, by the errors that they are judged by."""
    if board.rows.empty:
        return []
    missed = []
    for row in judged(board).to_dict("records"):
        if row["met"] is False:
            both = row["left_out"] and row["in_sample"]
            others = f"{row['left_out_rows']:,} rows with models left out"
            said = (
                f"{row['left_out']} of {others} ({row['found']} in sample)"
                if both
                else row["found"]
            )
            missed.append(
                f"Missed: {row['what']}: {said}; asked: {row['asked']}.".replace(
                    " %", "\N{NO-BREAK SPACE}%"
                )
            )
    more = len(missed) - _MOST_MISSED
    return [
        *missed[:_MOST_MISSED],
        *([f"{more} further targets are missed; see below."] if more > 0 else []),
    ]


def _setting(board: Scoreboard) -> dict[str, Any]:
    rows = board.rows
    if rows.empty:
        return {"Tables": len(board.run.get("tables", []))}
    return {
        "Tables": f"{len(board.run.get('tables', [])):,}",
        "Measured values": f"{len(rows):,}",
        "Answered": percent(
            float((is_answered(rows["status"]) & rows["predicted"].notna()).mean())
        ),
        "Extrapolated": percent(float(rows["status"].str.startswith("extrapolated").mean())),
        "Skipped": f"{len(board.run.get('skipped', {})):,}",
    }
