"""Requests being served, over the run."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.figures._curves import draw_level
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class Running(Figure[Results]):
    """Mean and peak in each bin, replicas added up."""

    title = "Requests in flight"
    section = "Over time"
    definition = (
        "Requests holding KV blocks, all replicas together: the batch that shares a step; "
        "mean and, thin, most in each bin."
    )
    absent = "No step was run."
    order = 32

    def draw(self, results: Results) -> go.Figure | None:
        return draw_level(results, "running", "Running (requests)", "%{y:,.3~r} running")
