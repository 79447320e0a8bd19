"""The busiest rank of each layer."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.shown_steps import shared_heading
from simulator.report.skew import SKEW, add_imbalance
from simulator.results.folder import Results
from simulator.results.shown_steps import shown_step


class Imbalance(Frozen):
    """A curve a deployment over layers with its skew, a plot a phase."""

    title: ClassVar[str] = "Imbalance between ranks, layer by layer"
    section: ClassVar[str] = "Experts and ranks"
    definition: ClassVar[str] = (
        "Token-expert pairs on the busiest rank over the mean rank, in one step; 1.0 is even. "
        f"{SKEW}"
    )
    absent: ClassVar[str] = (
        "No deployment in this run recorded its ranks (a dense model has no experts to spread)."
    )
    order: ClassVar[int] = 41
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        label, line = style.labels(results), style.lines(results)
        plots = {}
        for phase, of_phase in results.ranks.groupby("phase", sort=False):
            drawn = style.figure("MoE layer (index)", "Busiest over mean rank (ratio)", height=240)
            names = [str(name) for name in dict.fromkeys(of_phase["deployment"])]
            for name in names:
                pairs = of_phase[of_phase["deployment"] == name].groupby("layer")["num_pairs"]
                with np.errstate(invalid="ignore"):
                    ratio = pairs.max() / pairs.mean()
                uniform = shown_step(results.run, name, str(phase))["uniform_imbalance"]
                add_imbalance(drawn, ratio, uniform, label[name], line[name])
            drawn.update_yaxes(rangemode="tozero", nticks=6)
            drawn.update_xaxes(nticks=9)
            plots[shared_heading(results, names, str(phase))] = drawn
        return plots
