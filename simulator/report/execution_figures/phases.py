"""Time of a step by phase, measured and predicted."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.execution_numbers import TITLES, kinds, phase_medians_s
from simulator.report.gallery import Figure
from simulator.report.marks import add_name
from simulator.results.executed import SOURCES, Executed
from simulator.results.formats import seconds, time_axis
from simulator.results.phases import STEP_PHASES

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
