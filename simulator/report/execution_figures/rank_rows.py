"""Hidden vectors that each rank sent."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.execution_figures._by_rank import draw_bars
from simulator.report.gallery import Figure
from simulator.results.executed import Executed


class RankRows(Figure[Executed]):
    """A bar a rank and deployment, a plot a kind of step."""

    title = "Rows sent by each rank"
    section = "Load of the ranks"
    definition = (
        "Hidden vectors sent to other ranks in a mean layer of a step; whiskers: "
        "from the 10th to the 90th percentile of steps."
    )
    absent = "No tokens travelled between ranks in this run."
    order = 42

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return draw_bars(executed, "num_rows", "Rows (per layer and step)", "hidden vectors")
