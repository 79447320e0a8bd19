"""Tokens per second of each deployment."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from simulator.base.formats import number
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_name, whiskers
from simulator.results.executed import TITLES, Executed, kinds, row, spread_s

BAR_PIXELS = 54
_DIAMOND = "\N{WHITE DIAMOND}"
_PREDICTED = {
    "symbol": "diamond",
    "size": 12,
    "color": "#FFFFFF",
    "line": {"color": "#1A2230", "width": 2},
}


class Speed(Figure[Executed]):
    """A bar a deployment with its spread, and a diamond where it was predicted; a plot a kind of
    step.
    """

    title = "Tokens per second"
    section = "Speed"
    definition = (
        "Bars: measured, new tokens of a step over its median duration. Whiskers: "
        "from the 10th to the 90th percentile of steps, less those in which shards were "
        "lost. Diamonds: predicted."
    )
    absent = "No step was run."
    order = 10

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return {TITLES[kind]: _bars(executed, kind) for kind in kinds(executed)}


def _bars(executed: Executed, kind: str) -> go.Figure:
    label, marker = style.labels(executed), style.markers(executed)
    shown = [
        (name, found)
        for name in executed.deployments
        if (found := row(executed, name, kind)) is not None
    ]
    height = 60 + BAR_PIXELS * len(shown)
    drawn = style.figure("Tokens per second (1/s)", "", height, bargap=0.6, margin_l=12)
    ends = [1e-9]
    for place, (name, found) in enumerate(shown):
        measured, predicted = float(found["tokens_per_s"]), float(found["predicted_tokens_per_s"])
        tokens = measured * float(found["step_s"])
        low, high = (
            tokens / limit_s if limit_s > 0 else measured
            for limit_s in reversed(spread_s(executed, name, kind))
        )
        said = (
            f"{number(measured)} measured, {number(low)} "
            f"to {number(high)}; {number(predicted)} predicted"
        )
        drawn.add_bar(
            orientation="h",
            x=[measured],
            y=[place],
            name=label[name],
            showlegend=False,
            marker=marker[name] | {"line": {"width": 0}},
            error_x=whiskers(measured, low, high, color=style.MUTED, thickness=2, width=6),
            hovertemplate=f"{said}<extra>{label[name]}</extra>",
        )
        drawn.add_scatter(
            x=[predicted],
            y=[place],
            name=label[name],
            showlegend=False,
            mode="markers",
            marker=_PREDICTED,
            hovertemplate=f"{said}<extra>{label[name]}</extra>",
        )
        add_name(drawn, place - 0.22, label[name], 34)
        numbers = f"<b>{number(measured)}</b> · {_DIAMOND} {number(predicted)}"
        drawn.add_annotation(
            x=1, xref="paper", y=place - 0.22, xanchor="right", yanchor="bottom", text=numbers
        )
        ends += [measured, predicted, high]
    drawn.update_yaxes(visible=False, range=[len(shown) - 0.6, -0.8])
    drawn.update_xaxes(range=[0, 1.04 * float(np.nanmax(ends))], nticks=6)
    return drawn
