"""Output tokens a second over the run."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from simulator.base.columns import Columns
from simulator.report.figures._curves import Array, Bins, draw_over_time, mean_in_bins
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class Throughput(Figure[Results]):
    """Tokens counted where the engine finished them."""

    title = "Output throughput"
    section = "Over time"
    definition = (
        "Output tokens per second of the whole deployment: first tokens, and those of decode "
        "steps, spread over the steps; mean of each bin."
    )
    absent = "No step was run."
    order = 30

    def draw(self, results: Results) -> go.Figure | None:
        def count(steps: Columns, name: str, edges_s: Array) -> Bins:
            took_s = steps["duration_s"].where(steps["duration_s"] > 0)
            rate = (steps["decode_tokens"] / took_s).fillna(0.0).to_numpy(float)
            first_s = results.requests[name]["first_token_s"].dropna().to_numpy()
            first = np.histogram(first_s, edges_s)[0] / np.diff(edges_s)
            return mean_in_bins(steps, rate, edges_s) + first, None

        return draw_over_time(results, "Output throughput (token/s)", count, "%{y:,.4~r} token/s")
