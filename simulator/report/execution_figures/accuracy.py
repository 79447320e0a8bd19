"""Every phase's prediction against its measurement."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.execution_numbers import TITLES, kinds, phase_medians_s, row
from simulator.results.executed import Executed
from simulator.results.formats import log_ticks, seconds
from simulator.results.tables import STEP_PHASES

BANDS = (0.25, 0.1)
_STEP = "whole step"
_LEAST = 1e-3
"""Phases below this share of the step, both measured and predicted, are left out: they would only
stretch the axes."""


class Accuracy(Frozen):
    """A point a deployment and phase on logarithmic axes; a plot a kind of step."""

    title: ClassVar[str] = "Prediction against measurement"
    section: ClassVar[str] = "Predicted against measured"
    definition: ClassVar[str] = (
        "Medians over steps, a point a deployment and phase; on the line they agree, "
        "and the bands are 10 % and 25 % off. Phases that are zero in either, "
        "or below a thousandth of the step, are left out."
    )
    absent: ClassVar[str] = "No phase was both measured and predicted."
    order: ClassVar[int] = 21
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        plots = {}
        for kind in kinds(executed):
            if points := _points(executed, kind):
                plots[TITLES[kind]] = _scatter(executed, points)
        return plots


def _points(executed: Executed, kind: str) -> list[tuple[str, str, float, float]]:
    """Phase, deployment, measured and predicted seconds."""
    found = []
    for name in executed.deployments:
        whole = row(executed, name, kind)
        if whole is None:
            continue
        step_s = float(whole["step_s"]), float(whole["predicted_step_s"])
        measured, predicted = (
            phase_medians_s(executed, name, kind, source) for source in ("measured", "predicted")
        )
        if min(step_s) > 0:
            found.append((_STEP, name, *step_s))
        for phase in STEP_PHASES:
            pair = measured.get(phase, 0.0), predicted.get(phase, 0.0)
            if min(pair) > 0 and max(pair) >= _LEAST * step_s[0]:
                found.append((phase, name, *pair))
    return found


def _scatter(executed: Executed, points: list[tuple[str, str, float, float]]) -> go.Figure:
    label = style.labels(executed)
    every_ms = [1e3 * value for _, _, *pair in points for value in pair]
    low, high = min(every_ms) / 1.6, max(every_ms) * 1.6
    axis = {"type": "log", "range": [math.log10(low), math.log10(high)], **log_ticks(low, high)}
    drawn = style.figure("Measured (ms)", "Predicted (ms)", height=380, xaxis=axis, yaxis=axis)
    for band in BANDS:
        y = [low * (1 - band), high * (1 - band), high * (1 + band), low * (1 + band)]
        drawn.add_scatter(
            x=[low, high, high, low],
            y=y,
            fill="toself",
            fillcolor="rgba(128,139,153,0.16)",
            mode="none",
            hoverinfo="skip",
            showlegend=False,
        )
    line = {"color": style.MUTED, "width": 1, "dash": "dot"}
    drawn.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line=line, hoverinfo="skip", showlegend=False
    )
    for phase, colour in {_STEP: style.MUTED, **style.PHASE_COLOURS}.items():
        own = [
            (name, measured_s, predicted_s)
            for found, name, measured_s, predicted_s in points
            if found == phase
        ]
        if not own:
            continue
        drawn.add_scatter(
            x=[1e3 * measured_s for _, measured_s, _ in own],
            y=[1e3 * predicted_s for *_, predicted_s in own],
            name=phase,
            mode="markers",
            line={"color": colour},
            marker={
                "color": colour,
                "size": 9,
                "symbol": "square" if phase == _STEP else "circle",
                "opacity": 0.9,
            },
            customdata=[
                [label[name], seconds(measured_s), seconds(predicted_s)]
                for name, measured_s, predicted_s in own
            ],
            hovertemplate=(
                f"{phase}: %{{customdata[1]}} measured, %{{customdata[2]}} "
                "predicted<extra>%{customdata[0]}</extra>"
            ),
        )
    return drawn
