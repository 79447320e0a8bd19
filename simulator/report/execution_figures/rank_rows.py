"""How much each rank sent."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report.execution_figures._by_rank import bars
from simulator.results.executed import Executed


class RankRows(Frozen):
    """A bar a rank and deployment, a plot a kind of step."""

    title: ClassVar[str] = "Rows sent by each rank"
    section: ClassVar[str] = "Load of the ranks"
    definition: ClassVar[str] = (
        "Hidden vectors sent to other ranks in a mean layer of a step; whiskers: "
        "from the 10th to the 90th percentile of steps."
    )
    absent: ClassVar[str] = "No tokens travelled between ranks in this run."
    order: ClassVar[int] = 42
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        return bars(executed, "num_rows", "Rows (per layer and step)", "hidden vectors")
