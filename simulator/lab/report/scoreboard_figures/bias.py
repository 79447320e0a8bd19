"""Bias: predictions that are too long or too short."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go

from simulator.lab.report.scoreboard_figures._rows import lines, ratios
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED, log_axis
from simulator.results.scores import Scoreboard

_TICKS = (0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
_CROWDED = (0.67, 0.8, 1.25, 1.5)
"""Ticks that are left out where others would not have room."""
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


class Bias(Figure[Scoreboard]):
    """A box a suite and quantity: predicted over measured."""

    title = "Predicted over measured"
    section = "Errors"
    definition = (
        "Boxes hold the middle half of the rows, whiskers 80 %; the mark is the median. "
        "Right of 1 a prediction is too large."
    )
    absent = "No measured row was answered."
    order = 21

    def draw(self, board: Scoreboard) -> go.Figure | None:
        spread = {title: np.quantile(found, _SHARES) for title, found in ratios(board).items()}
        if not spread:
            return None
        farthest = max(1.3, *(max(found[-1], 1 / found[0]) for found in spread.values()))
        reach = min(farthest * 1.05, 6.0)
        drawn = style.figure(
            "Predicted / measured",
            "",
            90 + 30 * len(spread),
            xaxis=log_axis(1 / reach, reach, _ticks),
            yaxis={"autorange": "reversed"},
        )
        for title, found in spread.items():
            least, first, middle, third, most = found.tolist()
            name = html.escape(title, quote=False)
            drawn.add_box(
                y=[name],
                q1=[first],
                median=[middle],
                q3=[third],
                lowerfence=[least],
                upperfence=[most],
                orientation="h",
                name=name,
                line={"color": lines(board)[title]["color"], "width": 1.5},
                showlegend=False,
                hoverinfo="x",
                xhoverformat=".3~g",
            )
        drawn.add_vline(x=1, line=DOTTED)
        return drawn


def _ticks(low: float, high: float) -> dict[str, list[float] | list[str]]:
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    if len(ticks) > 7:
        ticks = [tick for tick in ticks if tick not in _CROWDED]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
