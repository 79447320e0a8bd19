"""How many rows are how far off."""

from __future__ import annotations

import html
from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.scoreboard_figures._rows import answered, lines, parts
from simulator.results.scores import Scoreboard

_LOW, _HIGH = 0.005, 2.0
_TICKS = (0.01, 0.03, 0.1, 0.3, 1.0)
_NUM_SHARES = 101


class Errors(Frozen):
    """A curve a suite and quantity: the share of answered rows whose error is at most so large."""

    title: ClassVar[str] = "Share of rows within an error"
    section: ClassVar[str] = "Errors"
    definition: ClassVar[str] = (
        "The share of answered rows whose absolute error, relative to the measurement, "
        "is at most so large. Higher and further left is better; "
        "the dotted lines are the median and the 90th percentile."
    )
    absent: ClassVar[str] = "No measured row was answered."
    order: ClassVar[int] = 20
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        line = lines(board)
        ticks = {"tickvals": list(_TICKS), "ticktext": [f"{tick:.0%}" for tick in _TICKS]}
        axis = {"type": "log", "range": [float(np.log10(_LOW)), float(np.log10(_HIGH))], **ticks}
        drawn = style.figure(
            "Absolute error",
            "Share of rows",
            360,
            xaxis=axis,
            yaxis={"range": [0, 1.01], "tickformat": ".0%", "dtick": 0.25},
        )
        shares = np.linspace(0, 1, _NUM_SHARES)
        for title, rows in parts(board):
            own = answered(rows)
            if own.empty:
                continue
            error = np.abs(own["predicted"].to_numpy(float) / own["measured"].to_numpy(float) - 1)
            at = np.quantile(error, shares)
            drawn.add_scatter(
                x=[float(f"{value:.3g}") for value in np.clip(at, _LOW / 10, None)],
                y=shares.round(3).tolist(),
                name=html.escape(title, quote=False),
                mode="lines",
                line=line[title],
                hovertemplate="%{y:.0%} of rows are within %{x:.1%}",
            )
        if not drawn.data:
            return {}
        for share in (0.5, 0.9):
            drawn.add_hline(y=share, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return {"": drawn}
