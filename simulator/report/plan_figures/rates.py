"""MoE against dense over the traffic: which kind is cheaper, by how much, and where that
changes.
"""

from __future__ import annotations

import math

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED, log_axis
from simulator.report.plan_bands import band_text, whiskers
from simulator.report.plan_figures import _rows
from simulator.results.answer import Answer
from simulator.results.answer.certainty import RatePoint
from simulator.results.formats import number
from simulator.results.plan_text import amount, hover, per_hour, times


class Rates(Figure[Answer]):
    """A line: the best mixture of experts' cost over the best dense model's."""

    title = "MoE over dense, as the traffic grows"
    section = "Models against each other"
    definition = (
        "Cost per hour of the cheapest mixture of experts over that of the cheapest dense model "
        "at the same targets, each on the cluster that it needs at that traffic, "
        "on logarithmic axes. Below the line at 1 the mixture of experts is cheaper. "
        "The dotted line is the planned traffic."
    )
    absent = "There is no pair of an MoE and a dense model."
    order = 11
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        points = () if answer.moe_vs_dense is None else answer.moe_vs_dense.rates
        rows = sorted((row for row in points if row.cost_ratio), key=lambda row: row.requests_per_s)
        if len(rows) < 2:
            return None
        rates = [row.requests_per_s for row in rows]
        ratios = [row.cost_ratio or 0.0 for row in rows]
        bands = [row.band_of("cost_ratio") for row in rows]
        ends = [
            1.0,
            *ratios,
            *(end for found in bands if found for end in found if 0 < end < math.inf),
        ]
        axis = _rows.ratio_axis(min(ends) / 1.3, max(ends) * 1.3)
        across = log_axis(rates[0] / 1.2, rates[-1] * 1.2)
        titles = "Traffic (requests/s)", "Cost, MoE over dense"
        drawn = style.figure(*titles, 280, xaxis=across, yaxis=axis, meta={"toolbar": False})
        drawn.update_xaxes(fixedrange=True).update_yaxes(fixedrange=True)
        drawn.add_scatter(
            x=rates,
            y=ratios,
            mode="lines+markers",
            line={"color": _rows.INK, "width": 2},
            marker={"color": _rows.INK, "size": 8},
            error_y=whiskers(ratios, bands, _rows.INK),
            showlegend=False,
            text=[_said(row, answer) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
        drawn.add_hline(y=1, line={"color": style.MUTED, "width": 1})
        planned = next((row.requests_per_s for row in rows if row.rate == 1), None)
        if planned:
            drawn.add_vline(x=planned, line=DOTTED)
        return drawn


def _said(row: RatePoint, answer: Answer) -> str:
    costs = [
        f"{name}: {per_hour(cost, answer)}{f' ({cases})' if cases else ''}"
        for name, cost, cases in (
            ("MoE", row.moe_cost_per_hour, band_text(row.band_of("moe_cost_per_hour"), amount)),
            (
                "dense",
                row.dense_cost_per_hour,
                band_text(row.band_of("dense_cost_per_hour"), amount),
            ),
        )
        if cost is not None
    ]
    cases = band_text(row.band_of("cost_ratio"), times)
    return hover(
        f"{number(row.requests_per_s)} requests/s, {times(row.rate)} the planned traffic",
        f"MoE costs {times(row.cost_ratio or 0.0)} what dense does",
        *costs,
        f"80 % of cases: {cases}" if cases else "",
    )
