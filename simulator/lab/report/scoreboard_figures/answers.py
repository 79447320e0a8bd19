"""Share of rows that have an answer, by its kind."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.lab.report.scoreboard_figures._rows import (
    STATUS_COLOURS,
    STATUS_NAMES,
    parts,
    share_figure,
    status_of,
)
from simulator.report.gallery import Figure
from simulator.results.scores import Scoreboard


class AnswersFigure(Figure[Scoreboard]):
    """A bar a suite and quantity, split by status."""

    title = "Rows that are answered"
    section = "Bands and answers"
    definition = (
        "Outside the domain that was measured a prediction is extrapolated, "
        "and its band is wider; where nothing can be said, nothing is."
    )
    absent = "Nothing was measured."
    order = 31

    def draw(self, board: Scoreboard) -> go.Figure | None:
        shares = {
            html.escape(title, quote=False): status_of(rows).value_counts(normalize=True)
            for title, rows in parts(board)
        }
        drawn = share_figure(len(shares), barmode="stack")
        for status, name in STATUS_NAMES.items():
            values = [float(found.get(status, 0.0)) for found in shares.values()]
            if any(values):
                drawn.add_bar(
                    x=values,
                    y=list(shares),
                    orientation="h",
                    name=name,
                    marker={"color": STATUS_COLOURS[status]},
                    hovertemplate=f"%{{x:.1%}} {name}<extra>%{{y}}</extra>",
                )
        return drawn if shares else None
