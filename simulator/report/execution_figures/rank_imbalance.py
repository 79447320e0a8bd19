"""The busiest rank of each layer."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.execution_numbers import TITLES, imbalance, kinds
from simulator.report.gallery import Figure
from simulator.report.skew import SKEW, draw_imbalance
from simulator.results.executed import Executed


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
