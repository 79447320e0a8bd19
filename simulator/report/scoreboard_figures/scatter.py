"""Every prediction against its measurement."""

from __future__ import annotations

import html
import math
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.scoreboard_figures._rows import (
    STATUS_COLOURS,
    STATUS_NAMES,
    answered,
    parts,
    status_of,
)
from simulator.results.formats import log_ticks, number, seconds, time_axis
from simulator.results.scores import Scoreboard

_BAND = 0.25
_MOST_POINTS = 700
"""Of a plot, drawn at random: a page of all would not open."""
_LONGEST_NAME = 70
_HEIGHT = 364
_MARGIN = {"t": 36, "r": 30}
"""Pixels: above, Plotly's buttons hide no point; to the right, half of a last tick's label fits on
a telephone."""


class Scatter(Frozen):
    """A point a measurement on logarithmic axes; a plot a suite and quantity."""

    title: ClassVar[str] = "Prediction against measurement"
    section: ClassVar[str] = "Predicted against measured"
    definition: ClassVar[str] = (
        "A point a measured row, on logarithmic axes; on the line they agree, "
        f"and the band is {100 * _BAND:.0f} % off either way. Of more than {_MOST_POINTS} rows as "
        "many were drawn at random."
    )
    absent: ClassVar[str] = "No measured row was answered."
    order: ClassVar[int] = 10
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        found = {title: answered(rows) for title, rows in parts(board)}
        return {
            _heading(title, rows): _plot(_sampled(rows))
            for title, rows in found.items()
            if len(rows)
        }


def _heading(title: str, rows: pd.DataFrame) -> str:
    return f"{html.escape(title)}, {len(rows):,} {'row' if len(rows) == 1 else 'rows'}"


def _sampled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if len(rows) <= _MOST_POINTS else rows.sample(_MOST_POINTS, random_state=0)


def _plot(rows: pd.DataFrame) -> go.Figure:
    unit = str(rows["unit"].iloc[0])
    both = rows[["measured", "predicted"]].to_numpy(float)
    size, name = time_axis(float(np.median(both))) if unit == "s" else (1.0, unit)
    low, high = float(both.min()) / size / 1.5, float(both.max()) / size * 1.5
    axis = {"type": "log", "range": [math.log10(low), math.log10(high)], **log_ticks(low, high)}
    drawn = style.figure(
        f"Measured ({name})",
        f"Predicted ({name})",
        height=_HEIGHT,
        margin=_MARGIN,
        xaxis=axis,
        yaxis=axis,
    )
    # On logarithmic axes an error either way is a straight strip.
    ends = np.array([low, high])
    drawn.add_scatter(
        x=[low, high, high, low],
        y=[*(ends * (1 - _BAND)), *(ends[::-1] * (1 + _BAND))],
        fill="toself",
        fillcolor="rgba(128,139,153,0.16)",
        mode="none",
        hoverinfo="skip",
        showlegend=False,
    )
    line = {"color": style.MUTED, "width": 1, "dash": "dot"}
    drawn.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line=line, hoverinfo="skip", showlegend=False
    )
    statuses = status_of(rows)
    for status in ("ok", "extrapolated"):
        own = rows[statuses == status]
        if own.empty:
            continue
        drawn.add_scatter(
            x=_short(own["measured"] / size),
            y=_short(own["predicted"] / size),
            name=STATUS_NAMES[status],
            mode="markers",
            line={"color": STATUS_COLOURS[status]},
            marker={"color": STATUS_COLOURS[status], "size": 5, "opacity": 0.55},
            text=[_said(row, unit) for row in own.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
        )
    return drawn


def _short(values: pd.Series) -> list[float]:
    """Four digits are more than a plot shows."""
    return [float(f"{value:.4g}") for value in values]


def _said(row: dict[Any, Any], unit: str) -> str:
    measured, predicted = float(row["measured"]), float(row["predicted"])
    shown = [
        seconds(value) if unit == "s" else f"{number(value)} {unit}"
        for value in (measured, predicted)
    ]
    group, subject = (
        style.short(html.escape(str(row[key]), quote=False), _LONGEST_NAME)
        for key in ("group", "subject")
    )
    return (
        f"{group}<br>row {subject}<br>{shown[0]} measured, {shown[1]} predicted "
        f"({predicted / measured - 1:+.0%})"
    )
