"""Requests being served, over the run."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report.figures._curves import level_in_bins, over_time
from simulator.results.folder import Results


class Running(Frozen):
    """Mean and peak in each bin, replicas added up."""

    title: ClassVar[str] = "Requests in flight"
    section: ClassVar[str] = "Over time"
    definition: ClassVar[str] = (
        "Requests holding KV blocks, all replicas together: the batch that shares a step; "
        "mean and, thin, most in each bin."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 32
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        return over_time(
            results,
            "Running (requests)",
            lambda steps, _, edges_s: level_in_bins(steps, "running", edges_s),
            "%{y:,.3~r} running",
        )
