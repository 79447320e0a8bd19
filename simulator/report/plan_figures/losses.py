"""Capacity that is left when nodes fail."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED
from simulator.report.model_colours import colour_of
from simulator.report.plan_bands import band_text
from simulator.report.plan_figures import _rows
from simulator.results.answer import Answer, LossRow
from simulator.results.formats import number, percent
from simulator.results.plan_text import hover


class Losses(Figure[Answer]):
    """A bar for each loss of GPUs or nodes."""

    title = "When GPUs or nodes are lost"
    section = "When nodes fail"
    definition = (
        "The recommended deployment on what is left of its cluster, at the same traffic: "
        "filled bars where every target is still met, hollow ones where one is missed."
    )
    absent = "No loss was simulated."
    order = 50
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        key = next(
            (key for key in _AXES if all(_value(row, key) is not None for row in answer.losses)),
            None,
        )
        if key is None or not answer.losses:
            return None
        best = answer.recommended
        colour = colour_of(answer, best) if best else _rows.INK
        bars = [
            _rows.Row(
                title=f"{row.lost} lost",
                said=_short(row, key),
                end=_value(row, key) or 0.0,
                hover=_said(row),
                colour=colour,
                is_hollow=not row.met,
                band=row.band_of(key),
            )
            for row in answer.losses
        ]
        high = 1.05 * max(_rows.reach(bars), 1.0 if key == "worst_ratio" else 1e-9)
        drawn = _rows.plot(bars, _AXES[key], range=[0, high], nticks=6)
        if key == "worst_ratio":
            drawn.add_vline(x=1, line=DOTTED)
        return drawn


_AXES = {
    "goodput_per_s": "Requests within their limits (1/s)",
    "worst_ratio": "Tightest target over its limit",
}
_SAID = {
    "goodput_per_s": "{} requests/s within their limits",
    "attainment": "{} of requests within their limits",
    "worst_ratio": "the tightest target is at {} of its limit",
}


def _value(row: LossRow, key: str) -> float | None:
    found: float | None = getattr(row, key)
    return found


def _short(row: LossRow, key: str) -> str:
    if row.text:
        return row.text
    value = _value(row, key) or 0.0
    made = (
        f"{number(value)} requests/s"
        if key == "goodput_per_s"
        else f"{percent(value)} of the limit"
    )
    return f"{made}, {'every target met' if row.met else 'a target missed'}"


def _said(row: LossRow) -> str:
    said = [f"{row.gpus_left:,} GPUs left"]
    for key, form in _SAID.items():
        if (value := _value(row, key)) is not None:
            text = number if key == "goodput_per_s" else percent
            cases = band_text(row.band_of(key), text)
            said.append(form.format(text(value)) + (f"; 80 % of cases: {cases}" if cases else ""))
    return hover(f"{row.lost} lost", *said)
