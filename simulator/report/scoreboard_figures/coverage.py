"""Whether the bands hold."""

from __future__ import annotations

import html
from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.scoreboard_figures._rows import lines
from simulator.results.scores import Scoreboard, score, title_of
from simulator.results.targets import BANDS_HOLD


class Coverage(Frozen):
    """A bar a suite and quantity."""

    title: ClassVar[str] = "Measurements inside their bands"
    section: ClassVar[str] = "Bands and answers"
    definition: ClassVar[str] = (
        "Share of answered rows whose measurement lies between the prediction's low and high. "
        f"They are meant to hold 80 %: the strip is {100 * BANDS_HOLD[0]:.0f} % "
        f"to {100 * BANDS_HOLD[1]:.0f} %. Above it bands are too wide, below too narrow."
    )
    absent: ClassVar[str] = "No answered row has a band."
    order: ClassVar[int] = 30
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        if board.rows.empty:
            return {}
        found = score(board.rows, ["suite", "quantity"]).dropna(subset="covered")
        if found.empty:
            return {}
        line = lines(board)
        titles = [
            title_of(suite, quantity)
            for suite, quantity in found[["suite", "quantity"]].itertuples(index=False)
        ]
        drawn = style.figure(
            "Share of rows",
            "",
            90 + 28 * len(found),
            xaxis={"range": [0, 1.04], "tickformat": ".0%", "dtick": 0.25},
            yaxis={"autorange": "reversed"},
        )
        drawn.add_bar(
            x=found["covered"].round(4).tolist(),
            y=[html.escape(title, quote=False) for title in titles],
            orientation="h",
            marker={"color": [line[title]["color"] for title in titles]},
            showlegend=False,
            hovertemplate="%{x:.1%} of rows<extra>%{y}</extra>",
        )
        drawn.add_vrect(*BANDS_HOLD, fillcolor=style.MUTED, opacity=0.25, line_width=0)
        return {"": drawn}
