"""Output tokens a second over the run."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.base.frozen import Frozen
from simulator.report.figures._curves import Bins, events_in_bins, mean_in_bins, over_time
from simulator.results.folder import Results


class Throughput(Frozen):
    """Tokens counted where the engine finished them."""

    title: ClassVar[str] = "Output throughput"
    section: ClassVar[str] = "Over time"
    definition: ClassVar[str] = (
        "Output tokens per second of the whole deployment: first tokens, and those of decode "
        "steps, spread over the steps; mean of each bin."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 30
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        def in_bins(steps: Columns, name: str, edges_s: NDArray[np.float64]) -> Bins:
            took_s = steps["duration_s"].where(steps["duration_s"] > 0)
            rate = (steps["decode_tokens"] / took_s).fillna(0.0).to_numpy(float)
            decoded = mean_in_bins(steps, rate, edges_s)
            first_s = results.requests[name]["first_token_s"].dropna().to_numpy()
            first = events_in_bins(first_s, np.ones(len(first_s)), edges_s)
            return Bins(decoded + first, None)

        return over_time(results, "Output throughput (token/s)", in_bins, "%{y:,.4~r} token/s")
