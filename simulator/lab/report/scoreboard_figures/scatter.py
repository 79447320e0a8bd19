"""Every prediction against its measurement."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.lab.report.scoreboard_figures._rows import (
    STATUS_COLOURS,
    STATUS_NAMES,
    parts,
    select_answered,
    status_of,
)
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_agreement, log_axis
from simulator.report.texts import amount, shorten
from simulator.results.formats import count, log_ticks, parameters, time_axis
from simulator.results.scores import Scoreboard

_BAND = 0.25
_MOST_POINTS = 700
"""Most points of a plot, drawn at random: a page of all would not open."""
_LONGEST_NAME = 70
_HEIGHT = 364
_MARGIN = {"t": 36, "r": 30}
"""Pixels: above, Plotly's buttons hide no point; to the right, half of a last tick's label fits on
a telephone."""


class Scatter(Figure[Scoreboard]):
    """A point a measurement on logarithmic axes; a plot a suite and quantity."""

    title = "Prediction against measurement"
    section = "Predicted against measured"
    definition = (
        "A point a measured row, on logarithmic axes; on the line they agree, "
        f"and the band is {100 * _BAND:.0f} % off either way. Of more than {_MOST_POINTS} rows as "
        "many were drawn at random."
    )
    absent = "No measured row was answered."
    order = 10

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        found = {title: select_answered(rows) for title, rows in parts(board)}
        return {
            _heading(title, rows): _plot(_sample_rows(rows))
            for title, rows in found.items()
            if len(rows)
        }


def _heading(title: str, rows: pd.DataFrame) -> str:
    return f"{html.escape(title)}, {count(len(rows), 'row')}"


def _sample_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if len(rows) <= _MOST_POINTS else rows.sample(_MOST_POINTS, random_state=0)


def _plot(rows: pd.DataFrame) -> go.Figure:
    unit = str(rows["unit"].iloc[0])
    both = rows[["measured", "predicted"]].to_numpy(float)
    size, name = time_axis(float(np.median(both))) if unit == "s" else (1.0, unit)
    low, high = float(both.min()) / size / 1.5, float(both.max()) / size * 1.5
    axis = log_axis(low, high, _ticks)
    titles = f"Measured ({name})", f"Predicted ({name})"
    drawn = style.figure(*titles, _HEIGHT, margin=_MARGIN, xaxis=axis, yaxis=axis)
    add_agreement(drawn, low, high, [_BAND])
    statuses = status_of(rows)
    for status in ("ok", "extrapolated"):
        own = rows[statuses == status]
        if own.empty:
            continue
        drawn.add_scatter(
            x=(own["measured"] / size).to_numpy(float),
            y=(own["predicted"] / size).to_numpy(float),
            name=STATUS_NAMES[status],
            mode="markers",
            line={"color": STATUS_COLOURS[status]},
            marker={"color": STATUS_COLOURS[status], "size": 5, "opacity": 0.55},
            text=[_said(row, unit) for row in own.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
        )
    return drawn


def _ticks(low: float, high: float) -> dict[str, list[Any]]:
    """Ticks whose large numbers fit a phone."""
    ticks: dict[str, list[Any]] = log_ticks(low, high)
    values = ticks["tickvals"]
    texts = [
        parameters(v) if v >= 1e4 else t for v, t in zip(values, ticks["ticktext"], strict=True)
    ]
    return {"tickvals": values, "ticktext": texts}


def _said(row: dict[Any, Any], unit: str) -> str:
    measured, predicted = float(row["measured"]), float(row["predicted"])
    group, subject = (
        html.escape(shorten(str(row[key]), _LONGEST_NAME), quote=False)
        for key in ("group", "subject")
    )
    return (
        f"{group}<br>row {subject}<br>{amount(measured, unit)} measured, "
        f"{amount(predicted, unit)} predicted ({predicted / measured - 1:+.0%})"
    )
