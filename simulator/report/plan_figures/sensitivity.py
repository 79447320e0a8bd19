"""Sensitivity of an answer, and candidates that were ruled out."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.base.formats import log_ticks, times
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.plan_figures import _rows
from simulator.report.plan_looks import SYMBOLS, colour_of, is_striped, label_of, model_of
from simulator.results.answer import Answer, SensitivityRow
from simulator.results.answer.parts import band_text
from simulator.results.plan_text import hover, kind_of, per_hour


class Sensitivity(Figure[Answer]):
    """A bar a change: the cost of the best answer under it, over today's."""

    title = "Sensitivity of the cost"
    section = "What if"
    definition = (
        "Each change alone, with the best deployment chosen anew: its cost per hour over today's, "
        "on a logarithmic axis, the largest change first; dearer to the right, "
        "cheaper to the left. Colours are those of the models that are then the best choice."
    )
    absent = "No change was tried."
    order = 40
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        rows = [row for row in answer.sensitivity if row.cost_ratio or not row.deployment]
        if not any(row.cost_ratio for row in rows):
            return None
        rows.sort(key=lambda row: -abs(math.log(row.cost_ratio)) if row.cost_ratio else -math.inf)
        bars = [_bar(answer, row) for row in rows]
        ends = [end for bar in bars for end in (bar.end, *(bar.band or ())) if 0 < end < math.inf]
        reach = max([1.5, *ends, *(1 / end for end in ends)]) * 1.1
        low, high = (1 / reach if min(ends) < 1 else 0.8), (reach if max(ends) > 1 else 1.25)
        drawn = _rows.plot(bars, "Cost over today's", start=1.0, **_rows.ratio_axis(low, high))
        # A change that costs nothing has a mark too.
        places = _rows.centres(bars)
        won = [
            (place, bar, row)
            for place, bar, row in zip(places, bars, rows, strict=True)
            if row.cost_ratio
        ]
        drawn.add_scatter(
            x=[bar.end for _, bar, _ in won],
            y=[place for place, _, _ in won],
            mode="markers",
            marker={
                "color": [bar.colour for _, bar, _ in won],
                "symbol": [_symbol(answer, row) for _, _, row in won],
                "size": 9,
                "line": {"color": style.MUTED, "width": 1},
            },
            showlegend=False,
            hoverinfo="skip",
        )
        drawn.add_vline(x=1, line={"color": style.MUTED, "width": 1})
        return drawn


def _bar(answer: Answer, row: SensitivityRow) -> _rows.Row:
    ratio, deployment = row.cost_ratio, row.deployment or ""
    best = model_of(answer, deployment) if ratio else None
    said = (
        "no deployment within the limits"
        if not ratio
        else times(ratio) + (", another choice" if row.flips else "")
    )
    cases = band_text(row.band_of("cost_ratio"), times)
    lines = [
        said,
        per_hour(row.cost_per_hour, answer) if row.cost_per_hour else "",
        f"80 % of cases: {cases}" if cases else "",
        deployment,
    ]
    return _rows.Row(
        title=row.change,
        said=said,
        end=ratio or 1.0,
        hover=hover(row.change, *lines),
        colour=colour_of(answer, best) if best else style.MUTED,
        is_striped=best is not None and is_striped(best),
        band=row.band_of("cost_ratio") if ratio else None,
        name=label_of(best) if best else "",
    )


def _symbol(answer: Answer, row: SensitivityRow) -> str:
    best = model_of(answer, row.deployment or "")
    return SYMBOLS[kind_of(best)] if best else "circle"


_MOST = 10
_LEAST = 0.7
"""Start of the bars: one candidate shows."""


class RuledOut(Figure[Answer]):
    """A bar a reason."""

    title = "Candidates ruled out, by reason"
    section = "Ruled out"
    definition = "How many candidates each reason ruled out, on a logarithmic axis."
    absent = "No candidate was ruled out."
    order = 60
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        found = sorted((row for row in answer.ruled_out if row.count), key=lambda row: -row.count)
        if not found:
            return None
        high = max(10.0, 1.3 * found[0].count)
        bars = [
            _rows.Row(
                title=f"{row.count:,}",
                said=row.reason,
                end=row.count,
                hover=hover(row.reason, f"{row.count:,} candidates, such as", row.example),
            )
            for row in found[:_MOST]
        ]
        span = {"range": [math.log10(_LEAST), math.log10(high)]}
        return _rows.plot(
            bars,
            "Candidates",
            start=_LEAST,
            type="log",
            **span,
            **log_ticks(_LEAST, max(high, 300.0)),
        )

    def find(self, answer: Answer) -> Finding | None:
        found = max(answer.ruled_out, key=lambda row: row.count, default=None)
        if found is None:
            return None
        return Finding("figure.ruled_out", count=found.count, reason=found.reason)
