"""Requests that wait for admission, over the run."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.figures._curves import draw_level
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class Waiting(Figure[Results]):
    """Mean and peak in each bin, replicas added up."""

    title = "Queue length"
    section = "Over time"
    definition = (
        "Requests queued for KV blocks or their first chunk, all replicas together; "
        "mean and, thin, most in each bin."
    )
    absent = "No step was run."
    order = 31

    def draw(self, results: Results) -> go.Figure | None:
        return draw_level(results, "waiting", "Waiting (requests)", "%{y:,.3~r} waiting")
