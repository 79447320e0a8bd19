"""Whether predictions are too long or too short."""

from __future__ import annotations

import html
from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.scoreboard_figures._rows import answered, lines, parts
from simulator.results.scores import Scoreboard

_TICKS = (0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


class Bias(Frozen):
    """A box a suite and quantity: predicted over measured."""

    title: ClassVar[str] = "Predicted over measured"
    section: ClassVar[str] = "Errors"
    definition: ClassVar[str] = (
        "Boxes hold the middle half of the rows, whiskers 80 %; the mark is the median. "
        "Right of 1 a prediction is too large."
    )
    absent: ClassVar[str] = "No measured row was answered."
    order: ClassVar[int] = 21
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        line = lines(board)
        spread = {
            title: np.quantile(
                own["predicted"].to_numpy(float) / own["measured"].to_numpy(float), _SHARES
            )
            for title, rows in parts(board)
            if len(own := answered(rows))
        }
        if not spread:
            return {}
        reach = min(
            max(1.3, *(max(found[-1], 1 / found[0]) for found in spread.values())) * 1.05, 6.0
        )
        ticks = [tick for tick in _TICKS if 1 / reach <= tick <= reach]
        if len(ticks) > 7:
            ticks = [tick for tick in ticks if tick not in (0.67, 0.8, 1.25, 1.5)]
        axis = {"type": "log", "range": [-float(np.log10(reach)), float(np.log10(reach))]}
        axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
        drawn = style.figure(
            "Predicted / measured",
            "",
            90 + 30 * len(spread),
            xaxis=axis,
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
                line={"color": line[title]["color"], "width": 1.5},
                showlegend=False,
                hoverinfo="x",
                xhoverformat=".3~g",
            )
        drawn.add_vline(x=1, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return {"": drawn}
