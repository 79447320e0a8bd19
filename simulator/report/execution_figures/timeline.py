"""One step of each kind, rank by rank, as it ran and as it was predicted to."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.execution_numbers import kinds
from simulator.report.gallery import Figure
from simulator.report.spans import add_bars, cut_to_layers, draw_axes
from simulator.results.executed import KINDS, SOURCES, Executed
from simulator.results.shown_steps import shown_step

MAX_BARS = 600
"""Bars of both sources together in a plot: more would not be told apart."""
_PITCH = 2.5
"""Distance of two ranks in bars."""


class Timeline(Figure[Executed]):
    """Bars in time, two rows a rank, a plot a deployment and kind."""

    title = "Timelines of median steps"
    section = "One step, rank by rank"
    definition = (
        "What each rank did in the step at the median of the measured times of its kind, and below "
        "it what was predicted, on one time scale; timeline.json beside this page holds every "
        "rank and layer and opens at ui.perfetto.dev."
    )
    absent = "The run holds no timeline of single steps."
    order = 30

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return dict(_draw_steps(executed))


def _draw_steps(executed: Executed) -> Iterator[tuple[str, go.Figure]]:
    label, spans = style.labels(executed), executed.spans
    for name in executed.deployments:
        for kind in kinds(executed):
            sources = {f"{kind}, {source}": source for source in SOURCES}
            own = spans[(spans["deployment"] == name) & spans["phase"].isin(list(sources))]
            if own.empty:
                continue
            shown, extent = cut_to_layers(own, MAX_BARS)
            if (shown[["rank", "layer"]].nunique() == own[["rank", "layer"]].nunique()).all():
                shown, extent = own, ""
            number = shown_step(executed.run, name, kind)["number"]
            cut = f", {extent}" if extent else ""
            heading = f"{label[name]}: {KINDS[kind]}, step {number}{cut}"
            yield heading, _draw(shown.assign(source=shown["phase"].map(sources)))


def _draw(spans: pd.DataFrame) -> go.Figure:
    ranks = sorted(int(rank) for rank in spans["rank"].unique())
    place = {
        (rank, source): _PITCH * i + below
        for i, rank in enumerate(ranks)
        for below, source in enumerate(SOURCES)
    }
    height = 64 + round((20 if len(ranks) <= 4 else 15) * _PITCH * max(len(ranks), 1))
    drawn, unit_s = draw_axes(spans, height, nticks=7)
    places = spans[["rank", "source"]].itertuples(index=False, name=None)
    rows = spans.assign(at=[place[found] for found in places])
    for source in SOURCES:
        add_bars(drawn, rows[rows["source"] == source], "at", source, unit_s, thickness=0.88)
    return drawn.update_yaxes(
        range=[_PITCH * len(ranks) - 1.0, -0.7],
        tickvals=list(place.values()),
        ticktext=[f"{rank} {source}" for rank, source in place],
        ticklabelstandoff=5,
    )
