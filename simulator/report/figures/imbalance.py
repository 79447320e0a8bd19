"""The busiest rank of each layer."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.results.folder import Results
from simulator.results.formats import TIMES


class Imbalance(Frozen):
    """A curve a deployment over layers, a plot a representative step."""

    title: ClassVar[str] = "Imbalance between ranks, layer by layer"
    section: ClassVar[str] = "Experts and ranks"
    definition: ClassVar[str] = (
        "Token-expert pairs on the busiest rank over the mean rank, in one "
        "representative step; 1.0 is even."
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
            for name, table in of_phase.groupby("deployment", sort=False):
                pairs = table.groupby("layer")["num_pairs"]
                with np.errstate(invalid="ignore"):
                    ratio = pairs.max() / pairs.mean()
                drawn.add_scatter(
                    x=ratio.index,
                    y=ratio.to_numpy(np.float32),
                    name=label[str(name)],
                    line=line[str(name)],
                    mode="lines" if len(ratio) > 1 else "markers",
                    hovertemplate="layer %{x}: %{y:.2f}" + TIMES,
                )
            drawn.update_yaxes(rangemode="tozero", nticks=6)
            drawn.update_xaxes(nticks=9)
            plots[f"{str(phase).capitalize()} step"] = drawn
        return plots
