"""The tables of the page of ``moesim execute``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simulator.report import tables
from simulator.report.execution_numbers import TITLES, kind_of_step, kinds
from simulator.report.markup import Markup, join, tag
from simulator.results.executed import KINDS, SUMMARY_COLUMNS, Executed
from simulator.results.formats import UNDEFINED, number, parameters, seconds


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "\N{MINUS SIGN}")


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens_per_s": ("Tokens per second", lambda value: number(value, keep_zeros=True)),
    "predicted_tokens_per_s": ("predicted speed", lambda value: number(value, keep_zeros=True)),
    "step_s": ("Time of a step", lambda value: seconds(value, keep_zeros=True)),
    "predicted_step_s": ("predicted time", lambda value: seconds(value, keep_zeros=True)),
    "error": ("Error of the prediction", _percent),
    "idle_error": ("with all cores", _percent),
    "others_share": ("Cores that others took", _share),
    "calibrated_others_share": ("when calibrated", _share),
    "largest_difference": (
        "Difference from one process",
        lambda value: "0" if value == 0 else f"{value:.1e}",
    ),
    "num_parameters": ("Parameters", parameters),
    "num_active_parameters": ("active", parameters),
}
"""Columns of the summary: heading, and how a number is written."""


def numbers_table(executed: Executed) -> Markup:
    """The summary, a row a deployment and kind of step; the fastest of each kind is marked."""
    head = [
        "Deployment",
        *(tag("span", title, title=SUMMARY_COLUMNS[key]) for key, (title, _) in _COLUMNS.items()),
    ]
    rows = []
    for kind in kinds(executed):
        of_kind = executed.summary[executed.summary["kind"] == kind]
        fastest = of_kind["tokens_per_s"].max() if len(of_kind) > 1 else math.nan
        rows.append(
            tag(
                "tr",
                tag("th", TITLES[kind], scope="rowgroup"),
                tag("td", colspan=len(_COLUMNS)),
                class_="group",
            )
        )
        for found in of_kind.to_dict("records"):
            name = str(found["deployment"])
            cells = [
                _cell(found, key, is_best=key == "tokens_per_s" and found[key] == fastest)
                for key in _COLUMNS
            ]
            rows.append(
                tag("tr", tag("th", tables.name_with_mark(executed, name), scope="row"), *cells)
            )
    return tables.table(head, rows, "metrics numbers", "All numbers")


def _cell(found: dict[Any, Any], key: str, is_best: bool) -> Markup:
    value = math.nan if found[key] is None else float(found[key])
    shown = _COLUMNS[key][1](value) if math.isfinite(value) else UNDEFINED
    marked = tag("span", shown, class_="best", title="fastest of its kind") if is_best else shown
    return tag(
        "td",
        marked,
        data_metric=key,
        data_deployment=str(found["deployment"]),
        data_kind=str(found["kind"]),
        data_value=repr(value),
    )


def faults_table(executed: Executed) -> Markup | None:
    """What went wrong, in order; None if nothing did."""
    if executed.faults.empty:
        return None
    rows = []
    for fault in executed.faults.to_dict("records"):
        step, name = int(fault["step"]), str(fault["deployment"])
        cells = (
            tag(
                "th",
                tables.name_with_mark(executed, name) if name in executed.deployments else name,
                scope="row",
            ),
            tag("td", f"{step} ({KINDS[kind_of_step(executed, step)]})"),
            tag("td", str(fault["ranks"])),
            tag("td", str(fault["what"])),
            tag("td", seconds(float(fault["recovery_s"]), keep_zeros=True), class_="value"),
        )
        rows.append(tag("tr", *cells))
    head = ["Deployment", "Step (number)", "Ranks lost", "What happened", "Recovery"]
    return tables.table(head, rows, "assumptions", "Faults")


def calibration_warning(run: dict[str, Any]) -> str | None:
    """What to know where the prediction does not rest on times of the machine that ran the
    steps.
    """
    known, machine = run.get("calibration") or {}, run.get("machine")
    if known.get("machine") == machine:
        return None
    if known.get("machine"):
        return (
            f"The prediction rests on times of another machine ({known['machine']}) "
            f"than the one that ran the steps ({machine}). Run moesim calibrate cpu on the "
            "latter to measure it."
        )
    title = known.get("title") or "no calibration that is named"
    return (
        f"The prediction rests on {title}, not on times of the machine that ran "
        f"the steps ({machine})."
    )


def assumed(executed: Executed) -> Markup:
    """What the prediction rests on: its calibration, then every assumption."""
    known = executed.run.get("calibration") or {}
    title, source = (str(known.get(key) or "") for key in ("title", "source"))
    stated = f"{title} ({source})" if title and source else title or source
    warning = calibration_warning(executed.run)
    above = [tag("ul", tag("li", warning), class_="warnings")] if warning else []
    said = [tag("p", tag("b", "Calibration:"), f" {stated}", class_="lead")] if stated else []
    return join([*above, *said, tables.assumed(executed)])
