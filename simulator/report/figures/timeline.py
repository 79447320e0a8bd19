"""The start of a decode step, rank by rank."""

from __future__ import annotations

from typing import ClassVar, Literal

import pandas as pd
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.shown_steps import WHICH, heading
from simulator.report.spans import add_bars, first_layers, window_s
from simulator.results.folder import Results
from simulator.results.formats import time_axis


class Timeline(Frozen):
    """Bars in time, a row a rank, a plot a deployment: the first layers of its decode step."""

    title: ClassVar[str] = "Timeline of a decode step"
    section: ClassVar[str] = "One step, rank by rank"
    definition: ClassVar[str] = (
        "What each rank does at the start of one decode step; "
        "timeline.json beside this page holds every rank and layer and opens at ui.perfetto.dev. "
        f"{WHICH}"
    )
    absent: ClassVar[str] = "The run holds no timeline of single steps."
    order: ClassVar[int] = 80
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        decode = results.spans[results.spans["phase"] == "decode"]
        for name, spans in decode.groupby("deployment", sort=False):
            shown, extent = first_layers(spans)
            plots[f"{heading(results, str(name), 'decode')}; {extent}"] = _gantt(shown)
        return plots


def _gantt(spans: pd.DataFrame) -> go.Figure:
    begin_s, end_s = window_s(spans)
    unit_s, unit = time_axis(end_s)
    num_ranks = spans["rank"].nunique()
    drawn = style.figure(
        f"Time since the start of the step ({unit})",
        "Rank (index)",
        height=80 + (22 if num_ranks <= 8 else 15) * max(num_ranks, 3),
        barmode="overlay",
        bargap=0.18,
    )
    add_bars(drawn, spans, "rank", "rank %{y}", unit_s)
    drawn.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    drawn.update_xaxes(range=[begin_s / unit_s, end_s / unit_s], nticks=9)
    return drawn
