"""Distribution of absolute errors over rows."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go

from simulator.lab.report.scoreboard_figures._rows import lines, ratios
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED, log_axis
from simulator.results.scores import Scoreboard

_LOW, _HIGH = 0.005, 2.0
_TICKS = (0.01, 0.03, 0.1, 0.3, 1.0)
_SHARES = np.linspace(0, 1, 101)


class Errors(Figure[Scoreboard]):
    """A curve a suite and quantity: the share of answered rows whose error is at most so large."""

    title = "Share of rows within an error"
    section = "Errors"
    definition = (
        "The share of answered rows whose absolute error, relative to the measurement, "
        "is at most so large. Higher and further left is better; "
        "the dotted lines are the median and the 90th percentile."
    )
    absent = "No measured row was answered."
    order = 20

    def draw(self, board: Scoreboard) -> go.Figure | None:
        drawn = style.figure(
            "Absolute error",
            "Share of rows",
            360,
            xaxis=log_axis(_LOW, _HIGH, _ticks),
            yaxis={"range": [0, 1.01], "tickformat": ".0%", "dtick": 0.25},
        )
        for title, ratio in ratios(board).items():
            error = np.quantile(np.abs(ratio - 1), _SHARES)
            drawn.add_scatter(
                x=np.maximum(error, _LOW / 10),
                y=_SHARES,
                name=html.escape(title, quote=False),
                mode="lines",
                line=lines(board)[title],
                hovertemplate="%{y:.0%} of rows are within %{x:.1%}",
            )
        for share in (0.5, 0.9) if drawn.data else ():
            drawn.add_hline(y=share, line=DOTTED)
        return drawn if drawn.data else None


def _ticks(*_: float) -> dict[str, list[float] | list[str]]:
    return {"tickvals": list(_TICKS), "ticktext": [f"{tick:.0%}" for tick in _TICKS]}
