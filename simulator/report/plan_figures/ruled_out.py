"""Number of candidates that were ruled out, by reason."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from simulator.report.gallery import Figure
from simulator.report.plan_figures import _rows
from simulator.results.answer import Answer
from simulator.results.formats import log_ticks
from simulator.results.plan_text import hover

_MOST = 10
_LEAST = 0.7
"""Start of the bars: one candidate shows."""


class RuledOut(Figure[Answer]):
    """A bar a reason."""

    title = "Candidates ruled out, by reason"
    section = "Ruled out"
    definition = "How many candidates each reason ruled out, on a logarithmic axis."
    absent = "No candidate was ruled out."
    order = 60
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        found = sorted((row for row in answer.ruled_out if row.count), key=lambda row: -row.count)
        if not found:
            return None
        high = max(10.0, 1.3 * found[0].count)
        bars = [
            _rows.Row(
                title=f"{row.count:,}",
                said=row.reason,
                end=row.count,
                hover=hover(row.reason, f"{row.count:,} candidates, such as", row.example),
            )
            for row in found[:_MOST]
        ]
        span = {"range": [math.log10(_LEAST), math.log10(high)]}
        return _rows.plot(
            bars,
            "Candidates",
            start=_LEAST,
            type="log",
            **span,
            **log_ticks(_LEAST, max(high, 300.0)),
        )
