"""Bars by rank: what each rank counted in a mean layer of a step."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.execution_numbers import HIGH, LOW, TITLES, kinds
from simulator.report.marks import whiskers
from simulator.results.executed import Executed
from simulator.results.formats import number


def draw_bars(executed: Executed, column: str, title: str, unit: str) -> dict[str, go.Figure]:
    """A bar a rank and deployment with its spread over steps; a plot a kind of step, none where
    nothing was counted.

    Args:
        column: of ``RANK_COLUMNS``.
        title: of the vertical axis.
        unit: what is counted, for the hover.
    """
    label, marker = style.labels(executed), style.markers(executed)
    plots = {}
    for kind in kinds(executed):
        of_kind = executed.ranks[executed.ranks["kind"] == kind]
        if of_kind.empty or not of_kind[column].any():
            continue
        few = of_kind["rank"].nunique() * of_kind["deployment"].nunique() <= 4
        drawn = style.figure(
            "Rank (index)", title, height=260, barmode="group", bargap=0.7 if few else 0.3
        )
        for name in executed.deployments:
            own = of_kind[of_kind["deployment"] == name]
            if own.empty:
                continue
            by_rank = own.groupby(["rank", "number"])[column].mean().groupby("rank")
            mean, low, high = by_rank.mean(), by_rank.quantile(LOW), by_rank.quantile(HIGH)
            drawn.add_bar(
                x=mean.index.to_numpy(),
                y=mean.to_numpy(float),
                name=label[name],
                marker=marker[name] | {"line": {"width": 0}},
                error_y=whiskers(mean, low, high, color=style.MUTED, thickness=1.5, width=4),
                customdata=[number(value) for value in mean],
                hovertemplate=f"rank %{{x}}: %{{customdata}} {unit}<extra>{label[name]}</extra>",
            )
        drawn.update_yaxes(rangemode="tozero", nticks=6)
        drawn.update_xaxes(showgrid=False, dtick=1 if of_kind["rank"].max() < 16 else None)
        plots[TITLES[kind]] = drawn
    return plots
