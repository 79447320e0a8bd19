"""Token-expert pairs that each rank computed."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.execution_figures._by_rank import draw_bars
from simulator.report.gallery import Figure
from simulator.results.executed import Executed


class RankPairs(Figure[Executed]):
    """A bar a rank and deployment, a plot a kind of step."""

    title = "Pairs computed by each rank"
    section = "Load of the ranks"
    definition = (
        "Token-expert pairs in a mean layer of a step; whiskers: "
        "from the 10th to the 90th percentile of steps. "
        "Ranks with more pairs keep the others waiting."
    )
    absent = "No deployment has routed experts."
    order = 40

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return draw_bars(executed, "num_pairs", "Pairs (per layer and step)", "pairs")
