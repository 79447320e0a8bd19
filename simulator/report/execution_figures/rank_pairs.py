"""How much each rank computed."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report.execution_figures._by_rank import bars
from simulator.results.executed import Executed


class RankPairs(Frozen):
    """A bar a rank and deployment, a plot a kind of step."""

    title: ClassVar[str] = "Pairs computed by each rank"
    section: ClassVar[str] = "Load of the ranks"
    definition: ClassVar[str] = (
        "Token-expert pairs in a mean layer of a step; whiskers: "
        "from the 10th to the 90th percentile of steps. "
        "Ranks with more pairs keep the others waiting."
    )
    absent: ClassVar[str] = "No deployment has routed experts."
    order: ClassVar[int] = 40
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return bars(executed, "num_pairs", "Pairs (per layer and step)", "pairs")
