"""Rows that were answered, and accuracy from one revision to the next."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.lab.report.scoreboard_figures.errors import (
    STATUS_COLOURS,
    STATUS_NAMES,
    parts,
    share_figure,
    status_of,
)
from simulator.lab.results.scores import TARGETS, Scoreboard
from simulator.report import style
from simulator.report.gallery import Figure


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
