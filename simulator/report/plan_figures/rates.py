"""MoE against dense over the traffic: which kind is cheaper, by how much, and where that
changes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.plan_bands import band, between, whiskers
from simulator.report.plan_figures import _rows
from simulator.report.plan_figures._wide import Wide
from simulator.results.formats import log_ticks, number
from simulator.results.plan_text import amount, hover, money, times


class Rates(Wide):
    """A line: the best mixture of experts' cost over the best dense model's."""

    title: ClassVar[str] = "MoE over dense, as the traffic grows"
    section: ClassVar[str] = "Models against each other"
    definition: ClassVar[str] = (
        "Cost per hour of the cheapest mixture of experts over that of the cheapest dense model "
        "at the same targets, each on the cluster that it needs at that traffic, "
        "on logarithmic axes. Below the line at 1 the mixture of experts is cheaper. "
        "The dotted line is the planned traffic."
    )
    absent: ClassVar[str] = "There is no pair of an MoE and a dense model."
    order: ClassVar[int] = 11

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        found = (answer.get("moe_vs_dense") or {}).get("rates") or []
        rows = sorted(
            (row for row in found if row.get("cost_ratio")), key=lambda row: row["requests_per_s"]
        )
        if len(rows) < 2:
            return None
        rates, ratios = (
            [_digits(row["requests_per_s"]) for row in rows],
            [_digits(row["cost_ratio"]) for row in rows],
        )
        bands = [band(row, "cost_ratio") for row in rows]
        ends = [
            1.0,
            *ratios,
            *(end for found in bands if found for end in found if 0 < end < math.inf),
        ]
        axis = {**_rows.ratio_axis(min(ends) / 1.3, max(ends) * 1.3), "fixedrange": True}
        low, high = rates[0] / 1.2, rates[-1] * 1.2
        across = {
            "type": "log",
            "range": [math.log10(low), math.log10(high)],
            **log_ticks(low, high),
            "fixedrange": True,
        }
        drawn = style.figure(
            "Traffic (requests/s)",
            "Cost, MoE over dense",
            280,
            xaxis=across,
            yaxis=axis,
            meta={"toolbar": False},
        )
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
        planned = next((row["requests_per_s"] for row in rows if row.get("rate") == 1), None)
        if planned:
            drawn.add_vline(x=planned, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return drawn


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _cases(row: dict[str, Any], key: str) -> str:
    found = between(band(row, key), amount)
    return f" ({found})" if found else ""


def _said(row: dict[str, Any], answer: dict[str, Any]) -> str:
    currency = answer.get("currency", "USD")
    costs = [
        f"{name}: {money(row[key], currency)} per hour{_cases(row, key)}"
        for name, key in (("MoE", "moe_cost_per_hour"), ("dense", "dense_cost_per_hour"))
        if row.get(key) is not None
    ]
    cases = between(band(row, "cost_ratio"), times)
    ratio = f"MoE costs {times(row['cost_ratio'])} what dense does"
    head = (
        f"{number(row['requests_per_s'])} requests/s, {times(row['rate'])} the planned traffic"
        if row.get("rate")
        else ""
    )
    return hover(
        head or f"{number(row['requests_per_s'])} requests/s",
        ratio,
        *costs,
        f"80 % of cases: {cases}" if cases else "",
    )
