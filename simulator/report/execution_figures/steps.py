"""Duration of each step, one after the other."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.execution_numbers import TITLES, kind_of_step, kinds, list_losses, steps
from simulator.report.gallery import Figure
from simulator.results.executed import Executed
from simulator.results.formats import log_ticks, seconds, time_axis
from simulator.results.rebalances_text import tell_move

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
    label, line = style.labels(executed), style.lines(executed)
    is_shown = (executed.steps["kind"] == kind) & (executed.steps["source"] == "measured")
    every_s = executed.steps.loc[is_shown, "duration_s"].astype(float)
    shortest_s, longest_s = (every_s.min(), every_s.max()) if len(every_s) else (0.0, 0.0)
    unit_s, unit = time_axis(longest_s)
    drawn = style.figure("Step (number)", f"Duration ({unit})", height=300)
    for name in executed.deployments:
        own = steps(executed, name, kind)
        if own.empty:
            continue
        drawn.add_scatter(
            x=own["number"].to_numpy(),
            y=own["duration_s"].to_numpy(float) / unit_s,
            name=label[name],
            line=line[name] | {"width": 1.6},
            mode="lines+markers",
            marker={"size": 5},
            customdata=[seconds(value) for value in own["duration_s"]],
            hovertemplate=f"step %{{x}}: %{{customdata}}<extra>{label[name]}</extra>",
        )
    _add_faults(drawn, executed, kind, unit_s, shortest_s)
    _add_moves(drawn, executed, kind, (shortest_s / unit_s, longest_s / unit_s))
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
        fault
        for fault in list_losses(executed)
        if kind_of_step(executed, int(fault["step"])) == kind
    ]
    if not faults:
        return
    label = style.labels(executed)
    heights, texts = [], []
    for fault in faults:
        name = str(fault["deployment"])
        own = steps(executed, name, kind)
        found = own.loc[own["number"] == int(fault["step"]), "duration_s"]
        heights.append((float(found.iloc[0]) if len(found) else floor_s) / unit_s)
        what = html.escape(str(fault["what"]), quote=False)
        texts.append([what, seconds(float(fault["recovery_s"])), label.get(name, "")])
    drawn.add_scatter(
        x=[int(fault["step"]) for fault in faults],
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


def _add_moves(
    drawn: go.Figure, executed: Executed, kind: str, levels: tuple[float, float]
) -> None:
    """Lines where the experts of a deployment moved, in its colour."""
    label, line = style.labels(executed), style.lines(executed)
    for name in executed.deployments:
        moves = [
            (moved["step"] - 0.5, tell_move(moved))
            for moved in style.facts(executed, name).get("rebalances") or []
            if kind_of_step(executed, int(moved["step"])) == kind
        ]
        style.add_moves(drawn, label[name], line[name], moves, levels)
