"""Parts of a training step."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.stacked_bars import draw_stacked
from simulator.results.formats import percent
from simulator.results.training import PARTS, TrainingResults

COLOURS = dict(
    zip(
        PARTS,
        (
            "#4477AA",
            "#66CCEE",
            "#228833",
            "#AA8811",
            "#EECC66",
            "#EE6677",
            "#AA3377",
            "#DD9944",
            "#667788",
            "#C5CAD1",
        ),
        strict=True,
    )
)


class Phases(Figure[TrainingResults]):
    """A stacked bar a deployment."""

    title = "Where a step's time goes"
    section = "How fast"
    definition = (
        "Shares of a step, mean over GPUs, which add up to it: computation, exchanges, waiting "
        "for the ranks with the busiest experts, gradients, optimizer, and the pipeline's bubble."
    )
    absent = "The run does not say what its steps consist of."
    order = 20
    width = "full"

    def draw(self, results: TrainingResults) -> go.Figure | None:
        parts = {name: style.facts(results, name)["parts_s"] for name in results.deployments}
        table = pd.DataFrame.from_dict(parts, orient="index")[list(PARTS)].astype(float)
        shares = table.div(table.sum(axis=1), axis=0).clip(lower=0.0)
        return draw_stacked(results, shares, COLOURS, "Share of a step (%)", percent, 0.01)
