"""The busiest rank of each layer."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.execution_numbers import TITLES, imbalance, kinds
from simulator.report.skew import SKEW, add_imbalance
from simulator.results.executed import Executed
from simulator.results.shown_steps import shown_step


class RankImbalance(Frozen):
    """A curve a deployment over layers with its skew, a plot a kind of step."""

    title: ClassVar[str] = "Imbalance between ranks, layer by layer"
    section: ClassVar[str] = "Load of the ranks"
    definition: ClassVar[str] = (
        "Pairs on the busiest rank of a step over the mean rank's, mean over steps; 1.0 is even. "
        f"{SKEW}"
    )
    absent: ClassVar[str] = "No deployment has routed experts."
    order: ClassVar[int] = 41
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, executed: Executed) -> dict[str, go.Figure]:
        label, line = style.labels(executed), style.lines(executed)
        plots = {}
        for kind in kinds(executed):
            of_kind = executed.ranks[executed.ranks["kind"] == kind]
            curves = {
                name: imbalance(of_kind[of_kind["deployment"] == name])
                for name in executed.deployments
            }
            if all(curve.empty for curve in curves.values()):
                continue
            drawn = style.figure("MoE layer (index)", "Busiest over mean rank (ratio)", height=240)
            for name, curve in curves.items():
                if not curve.empty:
                    uniform = shown_step(executed.run, name, kind)["uniform_imbalance"]
                    add_imbalance(drawn, curve, uniform, label[name], line[name])
            drawn.update_yaxes(rangemode="tozero", nticks=6)
            drawn.update_xaxes(
                dtick=1 if max(len(curve) for curve in curves.values()) <= 12 else None, nticks=9
            )
            plots[TITLES[kind]] = drawn
        return plots
