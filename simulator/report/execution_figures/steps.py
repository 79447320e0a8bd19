"""Steps of an execution, measured and simulated: times, phases, timeline."""

from __future__ import annotations

import html
from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

from simulator.base.formats import log_ticks, seconds, time_axis
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import (
    add_bars,
    add_curve,
    add_moves,
    add_name,
    cut_to_layers,
    draw_axes,
)
from simulator.results.executed import (
    KINDS,
    SOURCES,
    TITLES,
    Executed,
    kind_of_step,
    kinds,
    list_losses,
    phase_medians_s,
    steps,
)
from simulator.results.phases import STEP_PHASES
from simulator.results.run_sentences import describe_move
from simulator.results.sampled_steps import sampled_step

_WIDE = 12.0
"""Least factor between the longest and the shortest step that takes a logarithmic axis."""
_FAULT = "#D7263D"


class Steps(Figure[Executed]):
    """A curve a deployment, a plot a kind of step; faults are crosses."""

    title = "Duration of every step"
    section = "Step by step"
    definition = (
        "Measured steps in their order, without those that warmed up; "
        "a cross marks a step in which shards were lost, whose time is that of the last try, "
        "without the recovery. Dotted: experts moved before the step."
    )
    absent = "No step was run."
    order = 50

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return {TITLES[kind]: _curves(executed, kind) for kind in kinds(executed)}


def _curves(executed: Executed, kind: str) -> go.Figure:
    label = style.labels(executed)
    is_shown = (executed.steps["kind"] == kind) & (executed.steps["source"] == "measured")
    every_s = executed.steps.loc[is_shown, "duration_s"].astype(float)
    shortest_s, longest_s = (every_s.min(), every_s.max()) if len(every_s) else (0.0, 0.0)
    unit_s, unit = time_axis(longest_s)
    drawn = style.figure("Step (number)", f"Duration ({unit})", height=300)
    for name in executed.deployments:
        own = steps(executed, name, kind)
        if own.empty:
            continue
        add_curve(
            drawn,
            executed,
            name,
            f"step %{{x}}: %{{customdata}}<extra>{label[name]}</extra>",
            x=own["number"].to_numpy(),
            y=own["duration_s"].to_numpy(float) / unit_s,
            mode="lines+markers",
            marker={"size": 5},
            customdata=[seconds(value) for value in own["duration_s"]],
        )
    _add_faults(drawn, executed, kind, unit_s, shortest_s)
    levels = (shortest_s / unit_s, longest_s / unit_s)
    add_moves(drawn, executed, _list_moves(executed, kind), levels)
    if shortest_s > 0 and longest_s / shortest_s > _WIDE:
        drawn.update_yaxes(type="log", **log_ticks(shortest_s / unit_s, longest_s / unit_s))
    else:
        drawn.update_yaxes(rangemode="tozero", nticks=6)
    drawn.update_xaxes(nticks=8)
    return drawn


def _add_faults(
    drawn: go.Figure, executed: Executed, kind: str, unit_s: float, floor_s: float
) -> None:
    """Crosses on the steps in which shards were lost; at the foot for a step that only warmed
    up.
    """
    faults = [
        fault for fault in list_losses(executed) if kind_of_step(executed, fault.step) == kind
    ]
    if not faults:
        return
    label = style.labels(executed)
    heights, texts = [], []
    for fault in faults:
        own = steps(executed, fault.deployment, kind)
        found = own.loc[own["number"] == fault.step, "duration_s"]
        heights.append((float(found.iloc[0]) if len(found) else floor_s) / unit_s)
        what = html.escape(fault.what, quote=False)
        texts.append([what, seconds(fault.recovery_s), label.get(fault.deployment, "")])
    drawn.add_scatter(
        x=[fault.step for fault in faults],
        y=heights,
        name="fault",
        mode="markers",
        line={"color": _FAULT},
        marker={"symbol": "x", "size": 11, "color": _FAULT},
        customdata=texts,
        hovertemplate=(
            "step %{x}: %{customdata[0]}; ready after "
            "%{customdata[1]}<extra>%{customdata[2]}</extra>"
        ),
    )


def _list_moves(executed: Executed, kind: str) -> dict[str, list[tuple[float, str]]]:
    """Places where the experts of each deployment moved, and what to tell of it."""
    return {
        name: [
            (moved["step"] - 0.5, str(describe_move(moved)))
            for moved in executed.facts(name).get("rebalances") or []
            if kind_of_step(executed, int(moved["step"])) == kind
        ]
        for name in executed.deployments
    }


_PITCH = 3.1
"""Distance of two deployments in bars: two of them, and a line for the name."""


class Phases(Figure[Executed]):
    """Two stacked bars a deployment, the measured one above the predicted one; a plot a kind of
    step.
    """

    title = "A step by phase"
    section = "Predicted against measured"
    definition = (
        "Median over steps of the time in each phase, mean over ranks; measured above predicted."
    )
    absent = "No step was run."
    order = 20

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return {TITLES[kind]: _pairs(executed, kind) for kind in kinds(executed)}


def _pairs(executed: Executed, kind: str) -> go.Figure:
    label = style.labels(executed)
    own = [
        (name, source, phase_medians_s(executed, name, kind, source))
        for name in executed.deployments
        for source in SOURCES
    ]
    names = [name for name, source, medians_s in own if source == "measured" and medians_s]
    bars = [
        (_PITCH * names.index(name) + SOURCES.index(source), name, source, medians_s)
        for name, source, medians_s in own
        if name in names and medians_s
    ]
    longest_s = max((sum(medians_s.values()) for *_, medians_s in bars), default=0.0) or 1.0
    unit_s, unit = time_axis(longest_s)
    drawn = style.figure(
        f"Time of a step ({unit})", "", height=64 + 72 * len(names), barmode="stack", bargap=0.12
    )
    for phase in STEP_PHASES:
        if not any(medians_s[phase] for *_, medians_s in bars):
            continue
        drawn.add_bar(
            orientation="h",
            y=[y for y, *_ in bars],
            x=[medians_s[phase] / unit_s for *_, medians_s in bars],
            name=phase,
            marker={"color": style.PHASE_COLOURS[phase], "line": {"width": 0}},
            customdata=[
                [label[name], source, seconds(medians_s[phase])]
                for _, name, source, medians_s in bars
            ],
            hovertemplate=(
                f"{phase} %{{customdata[2]}}, %{{customdata[1]}}<extra>%{{customdata[0]}}</extra>"
            ),
        )
    for place, name in enumerate(names):
        add_name(drawn, _PITCH * place - 0.5, label[name])
    drawn.update_yaxes(
        range=[_PITCH * len(names) - 1.2, -1.6],
        tickvals=[y for y, *_ in bars],
        ticktext=[source for _, _, source, _ in bars],
        showgrid=False,
        ticklabelstandoff=5,
    )
    drawn.update_xaxes(rangemode="tozero", range=[0, 1.02 * longest_s / unit_s], nticks=7)
    return drawn


MAX_BARS = 600
"""Bars of both sources together in a plot: more would not be told apart."""
_PITCH_TIMELINE = 2.5
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
            number = sampled_step(executed, name, kind)["number"]
            cut = f", {extent}" if extent else ""
            heading = f"{label[name]}: {KINDS[kind]}, step {number}{cut}"
            yield heading, _draw(shown.assign(source=shown["phase"].map(sources)))


def _draw(spans: pd.DataFrame) -> go.Figure:
    ranks = sorted(int(rank) for rank in spans["rank"].unique())
    place = {
        (rank, source): _PITCH_TIMELINE * i + below
        for i, rank in enumerate(ranks)
        for below, source in enumerate(SOURCES)
    }
    height = 64 + round((20 if len(ranks) <= 4 else 15) * _PITCH_TIMELINE * max(len(ranks), 1))
    drawn, unit_s = draw_axes(spans, height, nticks=7)
    places = spans[["rank", "source"]].itertuples(index=False, name=None)
    rows = spans.assign(at=[place[found] for found in places])
    for source in SOURCES:
        add_bars(drawn, rows[rows["source"] == source], "at", source, unit_s, width=0.88)
    return drawn.update_yaxes(
        range=[_PITCH_TIMELINE * len(ranks) - 1.0, -0.7],
        tickvals=list(place.values()),
        ticktext=[f"{rank} {source}" for rank, source in place],
        ticklabelstandoff=5,
    )
