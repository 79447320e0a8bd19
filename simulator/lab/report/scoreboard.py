"""The page of ``moesim validate``."""

from __future__ import annotations

from itertools import chain, groupby

import pandas as pd

from simulator.base.formats import UNDEFINED, count, number
from simulator.lab.report.scoreboard_figures.errors import amount
from simulator.lab.results.scores import Scoreboard, is_answered, percent_of, title_of, worst
from simulator.report.deployment_tables import describe_making
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.rendering import Block, Section, render_blocks
from simulator.results.results_folder import Cell, TextTable

FIGURES = load_figures("report.scoreboard_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_WORST_ROWS = 3
_WORST_LEAD = (
    "The rows of each suite whose prediction is furthest off, as a ratio either way. A row is "
    "named by its number, from 0, or its id."
)
_FITS_LEAD = (
    "Every fit that is shipped or yours, with the errors that it states of itself: on measurements "
    "like those of the fit, with whole model shapes left out in turn."
)


def render(board: Scoreboard) -> str:
    """The page as one HTML document."""
    cards, rows = FigureCards(), board.rows
    figures = [figure for figure in FIGURES if figure.section != "History" or len(board.history)]
    drawn = cards.draw(figures, board) if len(rows) else {}
    absent = [f"{figure.title}: {figure.reason}" for figure in cards.missing]
    absent += [f"{title}: is not drawn, {error}" for title, error in cards.failed.items()]
    making = {"Command": board.run.get("command")} | describe_making(board.run)
    tables = [
        *board.list_tables(),
        *([_list_worst(board)] if len(rows) else []),
        *([_list_fits(board.fits)] if len(board.fits) else []),
        _list_read(board),
    ]
    parts = [list(own) for _, own in groupby(tables, key=lambda table: table.title)]
    shown = [Section(own[0].title, [Block(table=one) for one in own], own[0].lead) for own in parts]
    sections = [
        *shown[: bool(len(rows))],
        *(Section(title, [Block(cards=own)]) for title, own in drawn.items()),
        Section("Not drawn", [Block(sentences=absent, look="reasons")] if absent else []),
        *shown[bool(len(rows)) :],
        Section("How this was made", [Block(facts=making)]),
    ]
    setting = {"Tables": f"{len(board.run.get('tables', [])):,}"}
    if len(rows):
        answered = is_answered(rows["status"]) & rows["predicted"].notna()
        setting |= {
            "Measured values": f"{len(rows):,}",
            "Answered": percent_of(answered.mean()),
            "Extrapolated": percent_of(rows["status"].str.startswith("extrapolated").mean()),
            "Skipped": f"{len(board.run.get('skipped', {})):,}",
        }
    eyebrow = "Predictions against measurements"
    return render_blocks(
        "Accuracy", cards, board.verdict, sections, eyebrow=eyebrow, setting=setting
    )


def _list_worst(board: Scoreboard) -> TextTable:
    """The rows that are furthest off, of each suite and quantity; what is read first stands first,
    since a telephone shows little more.
    """
    rows = [["Measured", "Predicted", "Error", "Suite", "Group", "Row", "Status"]]
    by_quantity = worst(board.rows, _WORST_ROWS).groupby(["suite", "quantity"], sort=False)
    for row in chain.from_iterable(own.to_dict("records") for _, own in by_quantity):
        values = [amount(row[name], row["unit"]) for name in ("measured", "predicted")]
        error = percent_of(row["predicted"] / row["measured"] - 1, signed=True)
        source = f"{row['source'].split('/')[-1]}: " if "source" in row else ""
        title = title_of(row["suite"], row["quantity"])
        subject = f"{source}{row['subject']}"
        rows.append([*values, error, title, row["group"], subject, row["status"]])
    return TextTable("Furthest off", rows, _WORST_LEAD)


def _list_fits(fits: pd.DataFrame) -> TextTable:
    """Errors that calibrations state of themselves."""
    titles = ["Fit", "Rows", "Median", "90th percentile", "Bias", "Measured / predicted", "Kind"]
    rows: list[list[str | Cell]] = [[*titles]]
    for fit in fits.to_dict("records"):
        name = f"{fit['calibration']}: {fit['table']} {fit['entry']}".rstrip()
        errors = [percent_of(fit[key], signed=key == "bias") for key in ("median", "p90", "bias")]
        band = f"{number(fit['low'])} to {number(fit['high'])}" if fit["low"] > 0 else UNDEFINED
        count_of = number(fit["rows"])
        rows.append([Cell(name, fit["source"]), count_of, *errors, band, fit["kind"]])
    return TextTable("What the calibrations say of themselves", rows, _FITS_LEAD)


def _list_read(board: Scoreboard) -> TextTable:
    """Tables that were read, and files that were not, with reasons."""
    rows = [["Table", "Suite", "Read"]]
    for table in board.run.get("tables", []):
        fitted = " that a calibration was fitted on" if table.get("in_sample") else ""
        lost = table.get("unusable", {}).items()
        read = [f"{number_of:,} without a usable {column}" for column, number_of in lost]
        read.insert(0, count(table["rows"], "row") + fitted)
        rows.append([table["source"], table["suite"], "; ".join(read)])
    rows += [[name, UNDEFINED, why] for name, why in board.run.get("skipped", {}).items()]
    lead = "Tables of measurements are told apart by their columns."
    return TextTable("What was read", rows, lead)
