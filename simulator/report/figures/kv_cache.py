"""Share of the KV cache in use, over the run."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.figures._curves import draw_level
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class KvCache(Figure[Results]):
    """Mean and peak in each bin, mean over replicas: one between steps holds nothing."""

    title = "KV cache in use"
    section = "Over time"
    definition = (
        "Share of KV blocks in use, mean over ranks and replicas; mean and, thin, most in each "
        "bin. Where it reaches 100 %, requests wait or are preempted."
    )
    absent = "No step was run."
    order = 33

    def draw(self, results: Results) -> go.Figure | None:
        title, hover = "KV blocks in use (share)", "%{y:.1%} in use"
        drawn = draw_level(results, "kv_used", title, hover, is_mean=True)
        return None if drawn is None else drawn.update_yaxes(tickformat=".2~%")
