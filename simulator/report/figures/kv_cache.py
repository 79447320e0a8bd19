"""How full the KV cache is, over the run."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.columns import Columns
from simulator.base.frozen import Frozen
from simulator.report.figures._curves import Array, Bins, level_in_bins, over_time
from simulator.results.folder import Results


class KvCache(Frozen):
    """Mean and peak in each bin, mean over replicas."""

    title: ClassVar[str] = "KV cache in use"
    section: ClassVar[str] = "Over time"
    definition: ClassVar[str] = (
        "Share of KV blocks in use, mean over ranks and replicas; mean and, thin, most in each "
        "bin. Where it reaches 100 %, requests wait or are preempted."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 33
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        drawn = over_time(
            results,
            "KV blocks in use (share)",
            _share_in_bins,
            "%{y:.1%} in use",
        )
        if drawn is not None:
            drawn.update_yaxes(tickformat=".2~%")
        return drawn


def _share_in_bins(steps: Columns, _: str, edges_s: Array) -> Bins:
    """Replicas' shares over their number: a replica between steps holds nothing."""
    added, num_replicas = level_in_bins(steps, "kv_used", edges_s), steps["replica"].nunique()
    return Bins(*(bins / max(num_replicas, 1) for bins in added if bins is not None))
