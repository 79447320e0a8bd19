"""How many rows have an answer, and what kind of answer."""

from __future__ import annotations

import html
from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.scoreboard_figures._rows import STATUS_COLOURS, STATUS_NAMES, parts, status_of
from simulator.results.scores import Scoreboard


class AnswersFigure(Frozen):
    """A bar a suite and quantity, split by status."""

    title: ClassVar[str] = "Rows that are answered"
    section: ClassVar[str] = "Bands and answers"
    definition: ClassVar[str] = (
        "Outside the domain that was measured a prediction is extrapolated, "
        "and its band is wider; where nothing can be said, nothing is."
    )
    absent: ClassVar[str] = "Nothing was measured."
    order: ClassVar[int] = 31
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        shares = {
            title: status_of(rows).value_counts(normalize=True) for title, rows in parts(board)
        }
        if not shares:
            return {}
        drawn = style.figure(
            "Share of rows",
            "",
            90 + 28 * len(shares),
            barmode="stack",
            xaxis={"range": [0, 1.04], "tickformat": ".0%", "dtick": 0.25},
            yaxis={"autorange": "reversed"},
        )
        for status, name in STATUS_NAMES.items():
            values = [round(float(found.get(status, 0.0)), 4) for found in shares.values()]
            if any(values):
                drawn.add_bar(
                    x=values,
                    y=[html.escape(title, quote=False) for title in shares],
                    orientation="h",
                    name=name,
                    marker={"color": STATUS_COLOURS[status]},
                    hovertemplate=f"%{{x:.1%}} {name}<extra>%{{y}}</extra>",
                )
        return {"": drawn}
