"""Timeline of a step, stage by stage."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.formats import seconds, time_axis
from simulator.results.training import TrainingResults

_COLOURS = {
    "forward": "#4477AA",
    "backward": "#EE7733",
    "input": "#EECC66",
    "weight": "#AA8811",
    "both": "#228833",
    "gradients": "#AA3377",
    "optimizer": "#667788",
}
_ZOOMED_PIXELS = 232
"""Least height of a plot that the page lets readers zoom into."""
_MOST_BARS = 1200
"""Bars of a plot; of longer steps the beginning is shown."""


class Timeline(Figure[TrainingResults]):
    """Bars in time, a row a stage, a plot a deployment."""

    title = "Timeline of a step"
    section = "One step, stage by stage"
    definition = (
        "What each pipeline stage does: passes of micro-batches, then gradients and optimizer; "
        "gaps are the bubble. timeline.json beside this page opens at ui.perfetto.dev."
    )
    absent = "The run holds no timeline."
    order = 40
    width = "full"

    def draw(self, results: TrainingResults) -> dict[str, go.Figure]:
        label = style.labels(results)
        plots = {}
        for name, spans in results.spans.groupby("deployment", sort=False):
            shown = spans.sort_values("start_s").head(_MOST_BARS)
            begins = "" if len(shown) == len(spans) else f"; the first {_tell_end(shown)}"
            plots[f"{label[str(name)]}, {_tell_end(spans)}{begins}"] = _draw(shown)
        return plots


def _tell_end(spans: pd.DataFrame) -> str:
    return seconds(float((spans["start_s"] + spans["duration_s"]).max()))


def _draw(shown: pd.DataFrame) -> go.Figure:
    num_stages = int(shown["rank"].max()) + 1
    end_s = float((shown["start_s"] + shown["duration_s"]).max())
    unit_s, unit = time_axis(end_s)
    height = max(_ZOOMED_PIXELS, 90 + 26 * num_stages)
    title = f"Time since the start of the step ({unit})"
    drawn = style.figure(title, "Stage (index)", height, barmode="overlay", bargap=0.18)
    for name, colour in _COLOURS.items():
        own = shown[shown["name"] == name]
        if own.empty:
            continue
        batch = [f"micro-batch {n}" if n >= 0 else "whole step" for n in own["layer"]]
        took = [seconds(value) for value in own["duration_s"]]
        drawn.add_bar(
            orientation="h",
            y=own["rank"].to_numpy(),
            base=(own["start_s"] / unit_s).to_numpy(float),
            x=(own["duration_s"] / unit_s).to_numpy(float),
            name=name,
            marker={"color": colour, "line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"}},
            customdata=list(zip(batch, took, strict=True)),
            hovertemplate=f"{name}, %{{customdata[0]}}: %{{customdata[1]}}"
            "<extra>stage %{y}</extra>",
        )
    drawn.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    return drawn.update_xaxes(range=[0, end_s / unit_s], nticks=8)
