"""Coverage of the bands."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.lab.report.scoreboard_figures._rows import lines, share_figure
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.scores import Scoreboard, score, title_of
from simulator.results.targets import BANDS_HOLD


class Coverage(Figure[Scoreboard]):
    """A bar a suite and quantity."""

    title = "Measurements inside their bands"
    section = "Bands and answers"
    definition = (
        "Share of answered rows whose measurement lies between the prediction's low and high. "
        f"They are meant to hold 80 %: the strip is {100 * BANDS_HOLD[0]:.0f} % "
        f"to {100 * BANDS_HOLD[1]:.0f} %. Above it bands are too wide, below too narrow."
    )
    absent = "No answered row has a band."
    order = 30

    def draw(self, board: Scoreboard) -> go.Figure | None:
        if board.rows.empty:
            return None
        found = score(board.rows, ["suite", "quantity"]).dropna(subset="covered")
        if found.empty:
            return None
        titles = list(map(title_of, found["suite"], found["quantity"]))
        drawn = share_figure(len(found))
        drawn.add_bar(
            x=found["covered"].to_list(),
            y=[html.escape(title, quote=False) for title in titles],
            orientation="h",
            marker={"color": [lines(board)[title]["color"] for title in titles]},
            showlegend=False,
            hovertemplate="%{x:.1%} of rows<extra>%{y}</extra>",
        )
        drawn.add_vrect(*BANDS_HOLD, fillcolor=style.MUTED, opacity=0.25, line_width=0)
        return drawn
