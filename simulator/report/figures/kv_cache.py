"""How full the KV cache is, over the run."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report.figures._curves import mean_in_bins, over_time
from simulator.results.folder import Results


class KvCache(Frozen):
    """Mean over time and replicas."""

    title: ClassVar[str] = "KV cache in use"
    section: ClassVar[str] = "Over time"
    definition: ClassVar[str] = (
        "Share of KV blocks in use, mean over ranks and replicas; where it reaches 100 %, "
        "requests wait or are preempted."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 33
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        drawn = over_time(
            results,
            "KV blocks in use (share)",
            lambda steps, _, edges_s: (
                mean_in_bins(steps, "kv_used", edges_s) / max(steps["replica"].nunique(), 1)
            ),
            "%{y:.1%} in use",
        )
        if drawn is not None:
            drawn.update_yaxes(tickformat=".0%")
        return drawn
