"""The busiest rank of each layer."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.gallery import Figure
from simulator.report.heat import SKEW, draw_imbalance
from simulator.report.spans import shared_heading
from simulator.results.folder import Results


class Imbalance(Figure[Results]):
    """A curve a deployment over layers with its skew, a plot a phase."""

    title = "Imbalance between ranks, layer by layer"
    section = "Experts and ranks"
    definition = (
        "Token-expert pairs on the busiest rank over the mean rank, in one step; 1.0 is even. "
        f"{SKEW}"
    )
    absent = (
        "No deployment in this run recorded its ranks (a dense model has no experts to spread)."
    )
    order = 41

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for phase, of_phase in results.ranks.groupby("phase", sort=False):
            ratios = {}
            for name, own in of_phase.groupby("deployment", sort=False):
                pairs = own.groupby("layer")["num_pairs"]
                ratios[str(name)] = pairs.max() / pairs.mean()
            drawn = draw_imbalance(results, str(phase), ratios)
            plots[shared_heading(results, list(ratios), str(phase))] = drawn
        return plots
