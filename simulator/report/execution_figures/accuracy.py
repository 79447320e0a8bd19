"""Every phase's prediction against its measurement."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.base.formats import seconds
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_agreement, find_values, log_axis
from simulator.results.executed import TITLES, Executed, kinds, phase_medians_s, row
from simulator.results.phases import STEP_PHASES

BANDS = (0.25, 0.1)
_STEP = "whole step"
_LEAST = 1e-3
"""Phases below this share of the step, both measured and predicted, are left out: they would only
stretch the axes."""


class Accuracy(Figure[Executed]):
    """A point a deployment and phase on logarithmic axes; a plot a kind of step."""

    title = "Prediction against measurement"
    section = "Predicted against measured"
    definition = (
        "Medians over steps, a point a deployment and phase; on the line they agree, "
        "and the bands are 10 % and 25 % off. Phases that are zero in either, "
        "or below a thousandth of the step, are left out."
    )
    absent = "No phase was both measured and predicted."
    order = 21

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return {
            TITLES[kind]: _scatter(executed, points)
            for kind in kinds(executed)
            if (points := _points(executed, kind))
        }

    def find(self, executed: Executed) -> Finding | None:
        table = executed.summary[executed.summary["kind"] == kinds(executed)[0]]
        steps = table.set_index("deployment")
        ratios = steps["predicted_step_s"] / steps["step_s"]
        return find_values(executed, "figure.predicted", ratios)


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
    axis = log_axis(low, high)
    drawn = style.figure("Measured (ms)", "Predicted (ms)", height=380, xaxis=axis, yaxis=axis)
    add_agreement(drawn, low, high, BANDS)
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
