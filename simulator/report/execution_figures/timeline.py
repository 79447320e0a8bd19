"""One step of each kind, rank by rank, as it ran and as it was predicted to."""

from __future__ import annotations

from typing import ClassVar, Literal

import pandas as pd
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.execution_numbers import kinds
from simulator.report.spans import add_bars, first_layers, window_s
from simulator.results.executed import KINDS, SOURCES, Executed
from simulator.results.formats import time_axis
from simulator.results.shown_steps import shown_step

MAX_BARS = 600
"""Of both sources together, a plot."""
_PITCH = 2.5
"""Between two ranks, in bars."""


class Timeline(Frozen):
    """Bars in time, two rows a rank, a plot a deployment and kind."""

    title: ClassVar[str] = "Timelines of median steps"
    section: ClassVar[str] = "One step, rank by rank"
    definition: ClassVar[str] = (
        "What each rank did in the step at the median of the measured times of its kind, and below "
        "it what was predicted, on one time scale; timeline.json beside this page holds every "
        "rank and layer and opens at ui.perfetto.dev."
    )
    absent: ClassVar[str] = "The run holds no timeline of single steps."
    order: ClassVar[int] = 30
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        label, spans = style.labels(executed), executed.spans
        plots = {}
        for name in executed.deployments:
            for kind in kinds(executed):
                phases = {f"{kind}, {source}": source for source in SOURCES}
                own = spans[(spans["deployment"] == name) & spans["phase"].isin(list(phases))]
                if own.empty:
                    continue
                shown, extent = first_layers(own, MAX_BARS)
                if all(
                    shown[column].nunique() == own[column].nunique() for column in ("rank", "layer")
                ):
                    shown, extent = own, ""
                cut = f", {extent}" if extent else ""
                number = shown_step(executed.run, name, kind)["number"]
                plots[f"{label[name]}: {KINDS[kind]}, step {number}{cut}"] = _gantt(
                    shown.assign(source=shown["phase"].map(phases))
                )
        return plots


def _gantt(spans: pd.DataFrame) -> go.Figure:
    begin_s, end_s = window_s(spans)
    unit_s, unit = time_axis(end_s)
    ranks = sorted(int(rank) for rank in spans["rank"].unique())
    place = {
        (rank, source): _PITCH * i + below
        for i, rank in enumerate(ranks)
        for below, source in enumerate(SOURCES)
    }
    bar = 20 if len(ranks) <= 4 else 15
    drawn = style.figure(
        f"Time since the start of the step ({unit})",
        "Rank (index)",
        height=64 + round(bar * _PITCH * max(len(ranks), 1)),
        barmode="overlay",
    )
    at = [
        place[int(rank), str(source)]
        for rank, source in zip(spans["rank"], spans["source"], strict=True)
    ]
    rows = spans.assign(at=at)
    for source in SOURCES:
        add_bars(drawn, rows[rows["source"] == source], "at", source, unit_s, thickness=0.88)
    drawn.update_yaxes(
        range=[_PITCH * len(ranks) - 1.0, -0.7],
        tickvals=list(place.values()),
        ticktext=[f"{rank} {source}" for rank, source in place],
        showgrid=False,
        ticklabelstandoff=5,
    )
    drawn.update_xaxes(range=[begin_s / unit_s, end_s / unit_s], nticks=7)
    return drawn
