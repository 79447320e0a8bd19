"""The start of a decode step, rank by rank."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.report.gallery import Figure
from simulator.report.spans import WHICH, add_bars, cut_to_layers, draw_axes, heading
from simulator.results.folder import Results


class Timeline(Figure[Results]):
    """Bars in time, a row a rank, a plot a deployment: the first layers of its decode step."""

    title = "Timeline of a decode step"
    section = "One step, rank by rank"
    definition = (
        "What each rank does at the start of one decode step; "
        "timeline.json beside this page holds every rank and layer and opens at ui.perfetto.dev. "
        f"{WHICH}"
    )
    absent = "The run holds no timeline of single steps."
    order = 80
    width = "full"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        decode = results.spans[results.spans["phase"] == "decode"]
        for name, spans in decode.groupby("deployment", sort=False):
            shown, extent = cut_to_layers(spans)
            plots[f"{heading(results, str(name), 'decode')}; {extent}"] = _draw(shown)
        return plots


def _draw(spans: pd.DataFrame) -> go.Figure:
    num_ranks = spans["rank"].nunique()
    height = 80 + (22 if num_ranks <= 8 else 15) * max(num_ranks, 3)
    drawn, unit_s = draw_axes(spans, height, nticks=9, bargap=0.18)
    add_bars(drawn, spans, "rank", "rank %{y}", unit_s)
    return drawn.update_yaxes(autorange="reversed", dtick=1)
