"""Sampled steps: their headings, and their bars in time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.results.folder import Results
from simulator.results.formats import seconds, time_axis
from simulator.results.phases import STEP_PHASES
from simulator.results.shown_steps import shown_step, step_text

WHICH = (
    "Headings say which step of the run it is, or that it is representative: as many tokens as a "
    "step of the run, spread evenly over the ranks."
)
"""Caption of the headings of figures of single steps."""


def heading(results: Results, name: str, phase: str) -> str:
    """The heading of a deployment's plot."""
    return f"{style.labels(results)[name]}: {step_text(results.run, name, phase)}"


def shared_heading(results: Results, names: list[str], phase: str) -> str:
    """The heading of a plot with the steps of several deployments."""
    if len(names) == 1:
        said = step_text(results.run, names[0], phase)
    else:
        sources = {shown_step(results.run, name, phase)["source"] for name in names}
        steps = {
            frozenset({"run"}): f"{phase} steps of the run",
            frozenset({"representative"}): f"representative {phase} steps",
        }
        said = steps.get(frozenset(sources), f"{phase} steps, of the run and representative")
    return f"{said[0].upper()}{said[1:]}"


MAX_RANKS = 16
MAX_BARS = 400


def cut_to_layers(spans: pd.DataFrame, max_bars: int = MAX_BARS) -> tuple[pd.DataFrame, str]:
    """Cut spans to the first layers that fit in ``max_bars``, on at most ``MAX_RANKS`` ranks, and
    say so in words.
    """
    ranks = np.sort(spans["rank"].unique())
    on_ranks = spans[spans["rank"].isin(ranks[:MAX_RANKS])]
    extent = f"{min(len(ranks), MAX_RANKS)} of {len(ranks)} ranks"
    in_layers = on_ranks[on_ranks["layer"] >= 0]
    if in_layers.empty:
        return on_ranks, extent
    bars_up_to = in_layers.groupby("layer").size().cumsum()
    num_layers = max(int((bars_up_to <= max_bars).sum()), 1)
    shown = in_layers[in_layers["layer"].isin(bars_up_to.index[:num_layers])]
    # Spans of no layer, such as the engine's own time, are shown where they fall in the window.
    end_s = float((shown["start_s"] + shown["duration_s"]).max())
    whole = on_ranks[(on_ranks["layer"] < 0) & (on_ranks["start_s"] < end_s)]
    shown = pd.concat([shown, whole]) if len(whole) else shown
    return shown, f"first {num_layers} of {len(bars_up_to)} layers, {extent}"


def draw_axes(
    spans: pd.DataFrame, height: int, nticks: int, **layout: Any
) -> tuple[go.Figure, float]:
    """An empty timeline that holds spans, and the seconds of a unit of its axis.

    Time before the first layer (the engine's own) is the same on all ranks: it is cut rather than
    let it fill the plot.
    """
    end_s = float((spans["start_s"] + spans["duration_s"]).max())
    first_s = float(spans.loc[spans["layer"] >= 0, "start_s"].min())
    begin_s = max(0.0, first_s - 0.08 * (end_s - first_s)) if math.isfinite(first_s) else 0.0
    unit_s, unit = time_axis(end_s)
    title = f"Time since the start of the step ({unit})"
    drawn = style.figure(title, "Rank (index)", height, barmode="overlay", **layout)
    drawn.update_yaxes(showgrid=False)
    drawn.update_xaxes(range=[begin_s / unit_s, end_s / unit_s], nticks=nticks)
    return drawn, unit_s


def add_bars(
    drawn: go.Figure,
    spans: pd.DataFrame,
    row: str,
    extra: str,
    unit_s: float,
    thickness: float | None = None,
) -> None:
    """Add a bar a span, a trace a phase.

    Args:
        row: column with the bar's place on the vertical axis.
        extra: what the hover says beside the bar.
        unit_s: seconds of a unit of the horizontal axis.
        thickness: width of a bar where rows are not evenly spaced.
    """
    by_phase = spans.groupby("name")
    for phase in filter(by_phase.groups.__contains__, STEP_PHASES):
        part = by_phase.get_group(phase)
        layer = ["whole step" if i < 0 else f"layer {i}" for i in part["layer"]]
        took, start = (map(seconds, part[column]) for column in ("duration_s", "start_s"))
        drawn.add_bar(
            orientation="h",
            y=part[row].to_numpy(),
            base=(part["start_s"] / unit_s).to_numpy(float),
            x=(part["duration_s"] / unit_s).to_numpy(float),
            name=phase,
            width=thickness,
            marker={"color": style.PHASE_COLOURS[phase], "line": {"width": 0}},
            customdata=list(zip(layer, took, start, strict=True)),
            hovertemplate=(
                f"{phase}, %{{customdata[0]}}: %{{customdata[1]}} from "
                f"%{{customdata[2]}}<extra>{extra}</extra>"
            ),
        )
