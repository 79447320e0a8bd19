"""The tables of the page of ``moesim validate``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.report import tables
from simulator.report.markup import Markup, join, tag
from simulator.results.formats import UNDEFINED, number, seconds
from simulator.results.judgement import digits_beside, judged
from simulator.results.scores import Scoreboard, grouped, reasons, score, title_of, worst

_MOST_GROUPS = 25
_MOST_REASONS = 40
_WORST_ROWS = 3
_HEAD = (
    "Rows",
    "Median",
    "Mean",
    "90th percentile",
    "Bias",
    "Not answered",
    "Extra\N{SOFT HYPHEN}polated",
    "In band",
    "Target",
    "Within target here",
)


def percent(value: float, *limits: float, digits: int = 1, signed: bool = False) -> str:
    """A share or an error, with as many digits as show on which side of a limit it lies.

    >>> percent(0.0812), percent(0.5, signed=True), percent(12.34), percent(0.25004, 0.25)
    ('8.1 %', '+50.0 %', '1,234 %', '25.004 %')
    """
    if not math.isfinite(value):
        return UNDEFINED
    digits = digits_beside(value, *limits, digits=0 if abs(value) >= 1 else digits)
    text = f"{100 * value:{'+' if signed else ''},.{digits}f} %"
    return text.replace("-", "\N{MINUS SIGN}")


def verdict(met: bool | None) -> Markup:
    """Whether a target is met, as a badge."""
    if met is None:
        return Markup(UNDEFINED)
    return tag(
        "span", "met" if met else "missed", class_=f"badge {'measured' if met else 'assumed'}"
    )


def targets_table(board: Scoreboard) -> Markup:
    """Every target that the rows can be held to: what was found on them, and with models left out
    of the fits.
    """
    found = judged(board)
    has_left_out = bool(found["left_out"].any())
    is_mixed = bool(found["in_sample"].any()) and not found["in_sample"].all()
    # Errors that are judged stand first, since a telephone shows little more.
    head = [
        "What",
        "Met",
        "Models left out",
        "In sample" if found["in_sample"].all() else "On these rows",
        "Asked",
        "Rows",
    ]
    rows = []
    for row in found.to_dict("records"):
        cells = [
            row["what"],
            verdict(row["met"]),
            f"{row['left_out']}, of {row['left_out_rows']:,} rows"
            if row["left_out"]
            else UNDEFINED,
            f"{row['found']} (in sample)" if is_mixed and row["in_sample"] else row["found"],
            row["asked"],
            f"{row['rows']:,}",
        ]
        rows.append(
            _row(
                *(
                    cell if isinstance(cell, Markup) else _unbroken(cell)
                    for cell in _without(cells, has_left_out)
                )
            )
        )
    return tables.table(_without(head, has_left_out), rows, "assumptions targets", "Targets")


def _without(cells: list[str], has_left_out: bool) -> list[str]:
    return cells if has_left_out else [*cells[:2], *cells[3:]]


_WORDS = {
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


def legend() -> Markup:
    """What the headings mean."""
    return tag(
        "dl",
        *(tag("div", tag("dt", word), tag("dd", meaning)) for word, meaning in _WORDS.items()),
        class_="words",
    )


def _unbroken(text: str) -> str:
    """The text with every number and its percent sign on one line, and errors as the median / the
    90th percentile.
    """
    return text.replace("median ", "").replace(", p90", " /").replace(" %", "\N{NO-BREAK SPACE}%")


def scores_table(board: Scoreboard) -> Markup:
    """Each suite's groups, the worst first, under the suite's own numbers."""
    by_group = grouped(board.rows)
    rows = []
    for total in score(board.rows, ["suite", "quantity"]).to_dict("records"):
        own = by_group[
            (by_group["suite"] == total["suite"]) & (by_group["quantity"] == total["quantity"])
        ]
        title = title_of(total["suite"], total["quantity"])
        if board.in_sample(board.rows[board.rows["suite"] == total["suite"]]):
            title = f"{title}, in sample"
        rows.append(
            _scores(
                title,
                {**total, "target_median": math.nan, "target_p90": math.nan, "within_target": None},
                class_="group",
            )
        )
        if len(own) > 1:
            rows += [
                _scores(str(row["group"]) or "all", row)
                for row in own.head(_MOST_GROUPS).to_dict("records")
            ]
        elif len(own) == 1:
            rows[-1] = _scores(title, own.to_dict("records")[0], class_="group")
        if len(own) > _MOST_GROUPS:
            more = f"{len(own) - _MOST_GROUPS} groups with smaller errors are in scores.csv"
            rows.append(tag("tr", tag("td", more, colspan=len(_HEAD) + 1, class_="muted")))
    return tables.table(["Group", *map(Markup, _HEAD)], rows, "metrics numbers", "Errors by group")


def _scores(name: str, row: dict[Any, Any], class_: str | bool = False) -> Markup:
    target = UNDEFINED
    if math.isfinite(row["target_median"]):
        target = (
            f"{percent(row['target_median'], digits=0)}, {percent(row['target_p90'], digits=0)}"
        )
    cells = (
        f"{row['rows']:,}",
        percent(row["median"], *_limit(row["target_median"])),
        percent(row["mean"]),
        percent(row["p90"], *_limit(row["target_p90"])),
        percent(row["bias"], signed=True),
        *(percent(row[key], digits=0) for key in ("unsupported", "extrapolated", "covered")),
        target,
        UNDEFINED if row["within_target"] is None else "yes" if row["within_target"] else "no",
    )
    keys = {"data_suite": str(row["suite"]), "data_quantity": str(row["quantity"])}
    return tag(
        "tr",
        tag("th", name, scope="row"),
        *(tag("td", cell) for cell in cells),
        class_=class_,
        **keys,
    )


def _limit(target: float) -> list[float]:
    return [target] if math.isfinite(target) else []


def reasons_table(board: Scoreboard, status: str) -> Markup | None:
    """Why rows are ``unsupported`` or ``extrapolated``; None if none is."""
    found = reasons(board.rows, status)
    if found.empty:
        return None
    rows = [
        _row(row["reason"], row["suite"], f"{row['rows']:,}", classes=("source", "", "value"))
        for row in found.head(_MOST_REASONS).to_dict("records")
    ]
    if len(found) > _MOST_REASONS:
        rest = found.iloc[_MOST_REASONS:]
        rows.append(_row(f"{len(rest)} further reasons", "", f"{int(rest['rows'].sum()):,}"))
    return tables.table(["Why", "Suite", "Rows"], rows, "assumptions", f"Why rows are {status}")


def worst_table(board: Scoreboard) -> Markup | None:
    """The rows that are furthest off, of each suite and quantity."""
    found = worst(board.rows, _WORST_ROWS)
    if found.empty:
        return None
    rows = []
    for (suite, quantity), own in found.groupby(["suite", "quantity"], sort=False):
        for row in own.to_dict("records"):
            measured, predicted = float(row["measured"]), float(row["predicted"])
            cells = (
                _amount(measured, str(row["unit"])),
                _amount(predicted, str(row["unit"])),
                percent(predicted / measured - 1, signed=True),
                title_of(str(suite), str(quantity)),
                str(row["group"]),
                f"{Path(str(row['source'])).name}: {row['subject']}"
                if row.get("source")
                else str(row["subject"]),
                str(row["status"]),
            )
            rows.append(
                _row(*cells, classes=("value", "value", "value", "", "", "source", "source"))
            )
    # What is read first stands first, since a telephone shows little more.
    head = ["Measured", "Predicted", "Error", "Suite", "Group", "Row", "Status"]
    return tables.table(head, rows, "assumptions worst", "Rows that are furthest off")


def _amount(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else f"{number(value)} {unit}"


def fits_table(fits: pd.DataFrame) -> Markup | None:
    """What the calibrations say of their own errors; None where there are none."""
    if fits.empty:
        return None
    rows = []
    for (calibration, name), own in fits.groupby(["calibration", "table"], sort=False):
        rows.append(
            tag(
                "tr",
                tag("th", f"{calibration}: {name}", scope="rowgroup"),
                tag("td", colspan=7),
                class_="group",
            )
        )
        for row in own.to_dict("records"):
            band = (
                f"{number(row['low'])} to {number(row['high'])}"
                if math.isfinite(row["low"])
                else UNDEFINED
            )
            cells = (
                f"{row['rows']:,.0f}" if math.isfinite(row["rows"]) else UNDEFINED,
                percent(row["median"]),
                percent(row["p90"]),
                percent(row["bias"], signed=True),
                band,
                tag("span", str(row["kind"]), class_=f"badge {row['kind']}"),
            )
            heading = tag(
                "th",
                str(row["entry"]) or str(name),
                tag("span", str(row["source"]), class_="hint"),
                scope="row",
            )
            rows.append(tag("tr", heading, *(tag("td", cell) for cell in cells)))
    head = ["Fit", "Rows", "Median", "90th percentile", "Bias", "Measured / predicted", "Kind"]
    shown = tables.table(head, rows, "metrics numbers", "What the calibrations say of themselves")
    return tag("details", tag("summary", f"{len(fits)} fits, with their sources"), shown)


def read_table(run: dict[str, Any]) -> Markup:
    """What was read, and what was not and why."""
    rows = [
        _row(entry["source"], entry["suite"], _read(entry), classes=("", "", "source"))
        for entry in run.get("tables", [])
    ]
    rows += [
        _row(name, UNDEFINED, why, classes=("", "", "source"))
        for name, why in run.get("skipped", {}).items()
    ]
    return tables.table(["Table", "Suite", "Read"], rows, "assumptions", "What was read")


def _read(entry: dict[str, Any]) -> str:
    said = [f"{entry['rows']:,} {'row' if entry['rows'] == 1 else 'rows'}"]
    said += ["that a calibration was fitted on"] if entry.get("in_sample") else []
    left = [
        f"{count:,} without a usable {column}"
        for column, count in entry.get("unusable", {}).items()
    ]
    return "; ".join([" ".join(said), *left])


def _row(*cells: str, classes: Iterable[str] = ()) -> Markup:
    named = [*classes, *[""] * len(cells)]
    return tag(
        "tr",
        *(
            tag("td", join([cell]), class_=name or False)
            for cell, name in zip(cells, named, strict=False)
        ),
    )
