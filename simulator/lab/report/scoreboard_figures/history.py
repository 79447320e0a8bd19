"""Errors of earlier revisions."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.scores import Scoreboard
from simulator.results.targets import TARGETS

_TARGETS = [target.what for target in TARGETS]


class History(Figure[Scoreboard]):
    """A line for each target: median error of unseen rows over the runs of a history."""

    title = "Median error over time"
    section = "History"
    definition = (
        "Each mark is a run that was added to the history, by its date and revision; errors are "
        "of models, shapes and GPUs left out of the fits, and of published figures."
    )
    absent = "No history was named: moesim validate --history FILE keeps one."
    order = 60
    width = "full"

    def draw(self, board: Scoreboard) -> go.Figure | None:
        if board.history.empty:
            return None
        drawn = style.figure("", "Median error (%)", 360)
        found = board.history[board.history["what"].isin(_TARGETS)]
        for number, (what, own) in enumerate(found.groupby("what", sort=False)):
            drawn.add_scatter(
                x=own["date"],
                y=100 * own["unseen_median"],
                name=html.escape(str(what), quote=False),
                text=own["revision"].fillna("no revision"),
                mode="lines+markers",
                line={"color": style.colour_at(number)},
                hovertemplate="%{text}, %{x}: %{y:.1f} %",
            )
        return drawn
