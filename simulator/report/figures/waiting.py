"""Requests that wait for admission, over the run."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report.figures._curves import level_in_bins, over_time
from simulator.results.folder import Results


class Waiting(Frozen):
    """Mean and peak in each bin, replicas added up."""

    title: ClassVar[str] = "Queue length"
    section: ClassVar[str] = "Over time"
    definition: ClassVar[str] = (
        "Requests queued for KV blocks or their first chunk, all replicas together; "
        "mean and, thin, most in each bin."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 31
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        return over_time(
            results,
            "Waiting (requests)",
            lambda steps, _, edges_s: level_in_bins(steps, "waiting", edges_s),
            "%{y:,.3~r} waiting",
        )
