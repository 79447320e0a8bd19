"""Distribution of time to first token over requests."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report.figures._curves import draw_distribution
from simulator.report.gallery import Figure
from simulator.results.folder import Results
from simulator.results.metrics import measure_ttft


class Ttft(Figure[Results]):
    """The cumulative distribution, a curve a deployment, with the target."""

    title = "Time to first token"
    section = "Latency"
    definition = (
        "Share of requests whose time to first token (arrival to first output token, "
        "queueing included) is at most x."
    )
    absent = "No request finished."
    order = 20

    def draw(self, results: Results) -> go.Figure | None:
        return draw_distribution(
            results, lambda requests: measure_ttft(requests).to_numpy(float), "TTFT", "ttft_s"
        )
