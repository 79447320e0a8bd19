"""How evenly the placement spreads that load over ranks."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report.heat import grid, load_map
from simulator.report.shown_steps import WHICH, heading
from simulator.results.folder import Results


class RankLoad(Frozen):
    """A heat map a deployment and phase: layer by rank."""

    title: ClassVar[str] = "Load of each rank"
    section: ClassVar[str] = "Experts and ranks"
    definition: ClassVar[str] = (
        "Token-expert pairs computed on each rank over the mean of its layer, "
        "in one step; every layer waits for its reddest rank. Few tokens are uneven by chance: "
        f"the plot of the imbalance says by how much. {WHICH}"
    )
    absent: ClassVar[str] = (
        "No deployment in this run recorded its ranks (a dense model has no experts to spread)."
    )
    order: ClassVar[int] = 42
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for (name, phase), table in results.ranks.groupby(["deployment", "phase"], sort=False):
            pairs = grid(table, "layer", "rank", "num_pairs")
            counted = np.isfinite(pairs)
            mean = np.where(counted, pairs, 0).sum(axis=1, keepdims=True) / np.maximum(
                counted.sum(axis=1, keepdims=True), 1
            )
            with np.errstate(invalid="ignore"):
                plots[heading(results, str(name), str(phase))] = load_map(
                    pairs / mean, "Rank", "token-expert pairs"
                )
        return plots
