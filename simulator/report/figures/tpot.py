"""Distribution of time per output token over requests."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.base.columns import Columns, Picked
from simulator.report.figures._curves import Array, draw_distribution
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class Tpot(Figure[Results]):
    """The cumulative distribution, a curve a deployment, with the target."""

    title = "Time per output token"
    section = "Latency"
    definition = (
        "Share of requests whose time per output token, (E2E - TTFT) "
        "/ (output tokens - 1), is at most x."
    )
    absent = "No request has two output tokens, so time per output token is undefined."
    order = 21

    def draw(self, results: Results) -> go.Figure | None:
        return draw_distribution(results, _tpot_s, "TPOT", "tpot_s")


def _tpot_s(requests: Columns) -> Array:
    several = Picked(requests, (requests["num_output"] > 1).to_numpy())
    decoding_s = several["finish_s"] - several["first_token_s"]
    return (decoding_s / (several["num_output"] - 1)).to_numpy(float)
