"""Load of each rank: how evenly the placement spreads experts."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.report.gallery import Figure
from simulator.report.heat import grid, load_map
from simulator.report.spans import WHICH, heading
from simulator.results.folder import Results


class RankLoad(Figure[Results]):
    """A heat map a deployment and phase: layer by rank."""

    title = "Load of each rank"
    section = "Experts and ranks"
    definition = (
        "Token-expert pairs computed on each rank over the mean of its layer, "
        "in one step; every layer waits for its reddest rank. Few tokens are uneven by chance: "
        f"the plot of the imbalance says by how much. {WHICH}"
    )
    absent = (
        "No deployment in this run recorded its ranks (a dense model has no experts to spread)."
    )
    order = 42

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for (name, phase), table in results.ranks.groupby(["deployment", "phase"], sort=False):
            pairs = pd.DataFrame(grid(table, "layer", "rank", "num_pairs"))
            load = pairs.div(pairs.mean(axis=1), axis=0).to_numpy()
            plots[heading(results, str(name), str(phase))] = load_map(
                load, "Rank", "token-expert pairs"
            )
        return plots
