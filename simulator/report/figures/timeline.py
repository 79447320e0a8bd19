"""The start of a decode step, rank by rank."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.records import STEP_PHASES
from simulator.report import style
from simulator.report.formats import seconds, time_axis
from simulator.results import Results
from simulator.spec.base import Frozen

MAX_RANKS = 16
MAX_BARS = 400


class Timeline(Frozen):
    """Bars in time, a row a rank, a plot a deployment: the first layers of the representative decode step."""

    title: ClassVar[str] = "Timeline of a decode step"
    section: ClassVar[str] = "One step, rank by rank"
    definition: ClassVar[str] = (
        "What each rank does at the start of a representative decode step; timeline.json beside this page holds every rank and layer and "
        "opens at ui.perfetto.dev."
    )
    absent: ClassVar[str] = "The run holds no timeline of single steps."
    order: ClassVar[int] = 80
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        label = style.labels(results)
        plots = {}
        decode = results.spans[results.spans["phase"] == "decode"]
        for name, spans in decode.groupby("deployment", sort=False):
            shown, extent = _first_layers(spans)
            plots[f"{label[str(name)]}: {extent}"] = _gantt(shown)
        return plots


def _first_layers(spans: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """As many of the first layers as fit in ``MAX_BARS``, of at most ``MAX_RANKS`` ranks; and the words for what that is."""
    ranks = np.sort(spans["rank"].unique())
    on_ranks = spans[spans["rank"].isin(ranks[:MAX_RANKS])]
    layers = np.sort(on_ranks.loc[on_ranks["layer"] >= 0, "layer"].unique())
    bars_up_to = on_ranks[on_ranks["layer"] >= 0].groupby("layer").size().cumsum()
    num_layers = max(int((bars_up_to <= MAX_BARS).sum()), min(len(layers), 1))
    in_layers = on_ranks[on_ranks["layer"].isin(layers[:num_layers])] if len(layers) else on_ranks
    # What belongs to no layer (such as the engine's own time) is shown where it falls in the window.
    end_s = float((in_layers["start_s"] + in_layers["duration_s"]).max())
    whole = on_ranks[(on_ranks["layer"] < 0) & (on_ranks["start_s"] < end_s)]
    shown = pd.concat([in_layers, whole]) if len(layers) and len(whole) else in_layers
    of_ranks = f"{min(len(ranks), MAX_RANKS)} of {len(ranks)} ranks"
    return shown, f"first {num_layers} of {len(layers)} layers, {of_ranks}" if len(layers) else of_ranks


def _gantt(spans: pd.DataFrame) -> go.Figure:
    end_s = float((spans["start_s"] + spans["duration_s"]).max())
    unit_s, unit = time_axis(end_s)
    num_ranks = spans["rank"].nunique()
    first_s = float(spans.loc[spans["layer"] >= 0, "start_s"].min()) if (spans["layer"] >= 0).any() else 0.0
    # What comes before the first layer (the engine's own time) is the same on all ranks: it is cut rather than let it fill the plot.
    begin_s = max(0.0, first_s - 0.08 * (end_s - first_s))
    drawn = style.figure(
        f"Time since the start of the step ({unit})",
        "Rank (index)",
        height=80 + (22 if num_ranks <= 8 else 15) * max(num_ranks, 3),
        barmode="overlay",
        bargap=0.18,
    )
    for phase in STEP_PHASES:
        part = spans[spans["name"] == phase]
        if part.empty:
            continue
        layer = ["whole step" if i < 0 else f"layer {i}" for i in part["layer"]]
        drawn.add_bar(
            orientation="h",
            y=part["rank"].to_numpy(),
            base=(part["start_s"] / unit_s).to_numpy(np.float32),
            x=(part["duration_s"] / unit_s).to_numpy(np.float32),
            name=phase,
            marker={"color": style.PHASE_COLOURS[phase], "line": {"width": 0}},
            customdata=list(zip(layer, map(seconds, part["duration_s"]), map(seconds, part["start_s"]), strict=True)),
            hovertemplate=f"{phase}, %{{customdata[0]}}: %{{customdata[1]}} from %{{customdata[2]}}<extra>rank %{{y}}</extra>",
        )
    drawn.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    drawn.update_xaxes(range=[begin_s / unit_s, end_s / unit_s], nticks=9)
    return drawn
