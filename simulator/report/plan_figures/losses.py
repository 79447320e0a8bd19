"""What is left when nodes fail."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.model_colours import colour_of
from simulator.report.plan_bands import band, between
from simulator.report.plan_figures import _rows
from simulator.report.plan_figures._wide import Wide
from simulator.results.formats import number
from simulator.results.plan_text import hover, percent


class Losses(Wide):
    """A bar for each loss of GPUs or nodes."""

    title: ClassVar[str] = "When GPUs or nodes are lost"
    section: ClassVar[str] = "When nodes fail"
    definition: ClassVar[str] = (
        "The recommended deployment on what is left of its cluster, at the same traffic: "
        "filled bars where every target is still met, hollow ones where one is missed."
    )
    absent: ClassVar[str] = "No loss was simulated."
    order: ClassVar[int] = 50

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        rows = answer.get("losses") or []
        key = next(
            (key for key in _AXES if rows and all(_is_number(row.get(key)) for row in rows)), None
        )
        if key is None:
            return None
        best = answer.get("recommended")
        colour = colour_of(answer, best) if best else _rows.INK
        bars = [
            _rows.Row(
                title=_lost(row),
                said=_short(row, key),
                end=row[key],
                hover=_said(row),
                colour=colour,
                is_hollow=not row.get("met"),
                band=band(row, key),
            )
            for row in rows
        ]
        high = 1.05 * max(_rows.reach(bars), 1.0 if key == "worst_ratio" else 1e-9)
        drawn = _rows.plot(bars, _AXES[key], range=[0, high], nticks=6)
        if key == "worst_ratio":
            drawn.add_vline(x=1, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return drawn


_AXES = {
    "goodput_per_s": "Requests within their limits (1/s)",
    "worst_ratio": "Tightest target over its limit",
}


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _lost(row: dict[str, Any]) -> str:
    return f"{row['lost']} lost"


def _short(row: dict[str, Any], key: str) -> str:
    if row.get("text"):
        return str(row["text"])
    made = (
        f"{number(row[key])} requests/s"
        if key == "goodput_per_s"
        else f"{percent(row[key])} of the limit"
    )
    return f"{made}, {'every target met' if row.get('met') else 'a target missed'}"


_SAID = {
    "goodput_per_s": "{} requests/s within their limits",
    "attainment": "{} of requests within their limits",
    "worst_ratio": "the tightest target is at {} of its limit",
}


def _said(row: dict[str, Any]) -> str:
    said = [f"{row.get('gpus_left', 0):,} GPUs left"]
    for key, form in _SAID.items():
        if _is_number(row.get(key)):
            text = number if key == "goodput_per_s" else percent
            cases = between(band(row, key), text)
            said.append(
                form.format(text(row[key])) + (f"; 80 % of cases: {cases}" if cases else "")
            )
    return hover(_lost(row), *said)
