"""Bars that lie one below the other, each under its label: labels of any length fit, on a phone
too.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from simulator.base.formats import TIMES
from simulator.report import style
from simulator.report.marks import log_axis
from simulator.report.plan_looks import whiskers
from simulator.results.answer.parts import Band

INK = "#748091"
"""Colour of bars that stand for no model: seen on light and on dark."""
_LINE_INK, _EDGE = "#2B3544", "rgba(255,255,255,0.6)"
"""Colours of whiskers."""
_WIDTH = 45
"""Letters of a label's line that fit a phone."""
_LINE, _BAR, _GAP = 16, 20, 12
"""Pixels."""


_ROUND = (1, 2, 0.5, 4, 0.25, 10, 0.1, 3, 0.7, 1.5)
_TICKS = (*_ROUND, 0.8, 1.25, 6, 20, 50, 0.05, 0.02, 100, 0.9, 1.1)
"""Ticks of ratios, the most wanted first."""


class Row(NamedTuple):
    """A bar with its label."""

    title: str
    said: str
    """Text behind the title."""
    end: float
    """End of the bar."""
    hover: str
    """Hover text as HTML."""
    colour: str = INK
    is_striped: bool = False
    is_hollow: bool = False
    band: Band | None = None
    """Band of the bar's end."""
    name: str = ""
    """Name in the legend as HTML; no entry where empty."""


def plot(rows: Sequence[Row], axis: str, start: float = 0.0, **xaxis: Any) -> go.Figure:
    """Bars from ``start``, in their order.

    Args:
        axis: title of the horizontal axis.
        xaxis: further settings of it; labels begin where its ``range`` does.
    """
    centres, length = _layout(rows)
    drawn = style.figure(axis, "", height=round(length) + 56, xaxis=xaxis, meta={"toolbar": False})
    left = xaxis["range"][0]
    for place, row in zip(centres, rows, strict=True):
        edge = {"line": {"color": row.colour, "width": 1.5}} if row.is_hollow else {}
        drawn.add_bar(
            orientation="h",
            y=[place],
            width=[_BAR],
            x=[row.end - start],
            base=[start],
            name=row.name or None,
            showlegend=bool(row.name),
            marker={
                "color": "rgba(0,0,0,0)" if row.is_hollow else row.colour,
                "pattern": {"shape": "/" if row.is_striped else ""},
                **edge,
            },
            text=[row.hover],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
        where = {"x": left, "y": place - _BAR / 2 - 1, "xanchor": "left", "yanchor": "bottom"}
        drawn.add_annotation(**where, align="left", text=_label(row))
    _add_whiskers(drawn, rows)
    drawn.update_yaxes(visible=False, range=[length, 0], fixedrange=True)
    drawn.update_xaxes(fixedrange=True)
    return drawn


def centres(rows: Sequence[Row]) -> list[float]:
    """Places of the bars on the vertical axis."""
    return _layout(rows)[0]


def _layout(rows: Sequence[Row]) -> tuple[list[float], float]:
    """Centres of the bars from the top, each below the lines of its label, and the end of them all;
    in pixels.
    """
    found, end = [], 0.0
    for row in rows:
        end += _GAP / 2 + _LINE * (_label(row).count("<br>") + 1) + _BAR
        found.append(end - _BAR / 2)
        end += _GAP / 2
    return found, end


def _add_whiskers(drawn: go.Figure, rows: Sequence[Row]) -> None:
    banded = [
        (place, row.end, row.band)
        for place, row in zip(centres(rows), rows, strict=True)
        if row.band and row.band.is_wide
    ]
    if not banded:
        return
    places, ends, bands = map(list, zip(*banded, strict=True))
    # A light edge below a dark line is seen on every bar, on light and on dark.
    for colour, thickness, size in ((_EDGE, 5.0, 9), (_LINE_INK, 1.5, 5)):
        drawn.add_scatter(
            x=ends,
            y=places,
            mode="markers",
            marker={"color": colour, "size": size},
            error_x=whiskers(ends, bands, colour) | {"thickness": thickness},
            showlegend=False,
            hoverinfo="skip",
        )


def reach(rows: Sequence[Row]) -> float:
    """End of the longest bar or whisker."""
    return max(
        max(row.end, row.band.high if row.band and math.isfinite(row.band.high) else row.end)
        for row in rows
    )


def ratio_axis(low: float, high: float) -> dict[str, object]:
    """A logarithmic axis of ratios with ticks far enough apart for a phone."""
    return log_axis(low, high, _ratio_ticks)


def _ratio_ticks(low: float, high: float) -> dict[str, list[float] | list[str]]:
    ticks: list[float] = []
    for tick in _TICKS:
        apart = all(abs(math.log(tick / other)) >= 0.13 * math.log(high / low) for other in ticks)
        if low <= tick <= high and apart:
            ticks.append(tick)
    ticks.sort()
    return {"tickvals": ticks, "ticktext": [f"{tick:g}{TIMES}" for tick in ticks]}


def _label(row: Row) -> str:
    """The title in bold, with what is said behind it, or below where a phone has no room."""
    title = textwrap.wrap(row.title, _WIDTH - 5, break_on_hyphens=False) or [""]
    lines = [f"<b>{html.escape(part, quote=False)}</b>" for part in title]
    behind = len(title[-1]) + 2
    fits_behind, fits_below = behind + len(row.said) <= _WIDTH, len(row.said) <= _WIDTH
    if not fits_behind and fits_below:
        behind = 0
    first, *more = textwrap.wrap(
        f"{'.' * behind} {row.said}" if behind else row.said, _WIDTH + 1, break_on_hyphens=False
    ) or [""]
    rest = [html.escape(part, quote=False) for part in (first[behind:].lstrip(), *more)]
    if behind:
        lines[-1] += f"  {rest.pop(0)}"
    return "<br>".join(filter(None, lines + rest))
