"""Distribution of time to first token over requests."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.base.columns import Columns
from simulator.report.figures._curves import Array, draw_distribution
from simulator.report.gallery import Figure
from simulator.results.folder import Results


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
        return draw_distribution(results, _ttft_s, "TTFT", "ttft_s")


def _ttft_s(requests: Columns) -> Array:
    return (requests["first_token_s"] - requests["arrival_s"]).to_numpy(float)
