"""Where a step's time went, and where it was predicted to go."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.execution_numbers import TITLES, kinds, phase_medians_s
from simulator.results.executed import SOURCES, Executed
from simulator.results.formats import seconds, time_axis
from simulator.results.tables import STEP_PHASES

_PITCH = 3.1
"""Between two deployments, in bars: two of them, and a line for the name."""


class Phases(Frozen):
    """Two stacked bars a deployment, the measured one above the predicted one; a plot a kind of
    step.
    """

    title: ClassVar[str] = "A step by phase"
    section: ClassVar[str] = "Predicted against measured"
    definition: ClassVar[str] = (
        "Median over steps of the time in each phase, mean over ranks; measured above predicted."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 20
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return {TITLES[kind]: _pairs(executed, kind) for kind in kinds(executed)}


def _pairs(executed: Executed, kind: str) -> go.Figure:
    label = style.labels(executed)
    bars: list[tuple[float, str, str, dict[str, float]]] = []
    names = [
        name for name in executed.deployments if phase_medians_s(executed, name, kind, "measured")
    ]
    for place, name in enumerate(names):
        for below, source in enumerate(SOURCES):
            if medians_s := phase_medians_s(executed, name, kind, source):
                bars.append((_PITCH * place + below, name, source, medians_s))
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
        y = _PITCH * place - 0.5
        drawn.add_annotation(
            x=0, y=y, xanchor="left", yanchor="bottom", text=style.short(label[name])
        )
    drawn.update_yaxes(
        range=[_PITCH * len(names) - 1.2, -1.6],
        tickvals=[y for y, *_ in bars],
        ticktext=[source for _, _, source, _ in bars],
        showgrid=False,
        ticklabelstandoff=5,
    )
    drawn.update_xaxes(rangemode="tozero", range=[0, 1.02 * longest_s / unit_s], nticks=7)
    return drawn
