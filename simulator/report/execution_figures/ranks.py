"""Ranks of an execution: rows, pairs and imbalance, layer by layer."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.base.formats import number
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import SKEW, draw_imbalance, whiskers
from simulator.results.executed import HIGH, LOW, TITLES, Executed, imbalance, kinds


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


class _Bars(Figure[Executed]):
    """A bar a rank and deployment, a plot a kind of step."""

    section = "Load of the ranks"
    column: str
    y: str
    """Title of the vertical axis."""
    unit: str

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return draw_bars(executed, self.column, self.y, self.unit)


class RankRows(_Bars):
    """A bar a rank and deployment, a plot a kind of step."""

    title = "Rows sent by each rank"
    definition = (
        "Hidden vectors sent to other ranks in a mean layer of a step; whiskers: "
        "from the 10th to the 90th percentile of steps."
    )
    absent = "No tokens travelled between ranks in this run."
    order = 42
    column, y, unit = "num_rows", "Rows (per layer and step)", "hidden vectors"


class RankPairs(_Bars):
    """A bar a rank and deployment, a plot a kind of step."""

    title = "Pairs computed by each rank"
    definition = (
        "Token-expert pairs in a mean layer of a step; whiskers: "
        "from the 10th to the 90th percentile of steps. "
        "Ranks with more pairs keep the others waiting."
    )
    absent = "No deployment has routed experts."
    order = 40
    column, y, unit = "num_pairs", "Pairs (per layer and step)", "pairs"


class RankImbalance(Figure[Executed]):
    """A curve a deployment over layers with its skew, a plot a kind of step."""

    title = "Imbalance between ranks, layer by layer"
    section = "Load of the ranks"
    definition = (
        "Pairs on the busiest rank of a step over the mean rank's, mean over steps; 1.0 is even. "
        f"{SKEW}"
    )
    absent = "No deployment has routed experts."
    order = 41

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        plots = {}
        for kind in kinds(executed):
            ranks = executed.ranks[executed.ranks["kind"] == kind]
            curves = {
                name: imbalance(ranks[ranks["deployment"] == name]) for name in executed.deployments
            }
            ratios = {name: curve for name, curve in curves.items() if len(curve)}
            if ratios:
                plots[TITLES[kind]] = drawn = draw_imbalance(executed, kind, ratios)
                if max(map(len, ratios.values())) <= 12:
                    drawn.update_xaxes(dtick=1)
        return plots
