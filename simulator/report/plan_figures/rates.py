"""Rates that a deployment carries, and what is left of it when GPUs are lost."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.base.formats import amount, number, percent, times
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED, log_axis
from simulator.report.plan_figures import _rows
from simulator.report.plan_looks import colour_of, whiskers
from simulator.results.answer import Answer, LossRow
from simulator.results.answer.certainty import RatePoint
from simulator.results.answer.parts import band_text
from simulator.results.plan_text import hover, per_hour


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

    def find(self, answer: Answer) -> Finding | None:
        points = () if answer.moe_vs_dense is None else answer.moe_vs_dense.rates
        ratios = [row.cost_ratio for row in points if row.cost_ratio]
        return Finding("figure.ratio", low=min(ratios), high=max(ratios)) if ratios else None


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


class Losses(Figure[Answer]):
    """A bar for each loss of GPUs or nodes."""

    title = "When GPUs or nodes are lost"
    section = "When nodes fail"
    definition = (
        "The recommended deployment on what is left of its cluster, at the same traffic: "
        "filled bars where every target is still met, hollow ones where one is missed."
    )
    absent = "No loss was simulated."
    order = 50
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        key = next(
            (key for key in _AXES if all(_value(row, key) is not None for row in answer.losses)),
            None,
        )
        if key is None or not answer.losses:
            return None
        best = answer.recommended
        colour = colour_of(answer, best) if best else _rows.INK
        bars = [
            _rows.Row(
                title=f"{row.lost} lost",
                said=_short(row, key),
                end=_value(row, key) or 0.0,
                hover=_said_losses(row),
                colour=colour,
                is_hollow=not row.met,
                band=row.band_of(key),
            )
            for row in answer.losses
        ]
        high = 1.05 * max(_rows.reach(bars), 1.0 if key == "worst_ratio" else 1e-9)
        drawn = _rows.plot(bars, _AXES[key], range=[0, high], nticks=6)
        if key == "worst_ratio":
            drawn.add_vline(x=1, line=DOTTED)
        return drawn

    def find(self, answer: Answer) -> Finding | None:
        met, tried = sum(row.met for row in answer.losses), len(answer.losses)
        return Finding("figure.losses", met=met, tried=tried) if tried else None


_AXES = {
    "goodput_per_s": "Requests within their limits (1/s)",
    "worst_ratio": "Binding SLO over its limit",
}
_SAID = {
    "goodput_per_s": "{} requests/s within their limits",
    "attainment": "{} of requests within their limits",
    "worst_ratio": "the binding SLO is at {} of its limit",
}


def _value(row: LossRow, key: str) -> float | None:
    found: float | None = getattr(row, key)
    return found


def _short(row: LossRow, key: str) -> str:
    if row.text:
        return row.text
    value = _value(row, key) or 0.0
    made = (
        f"{number(value)} requests/s"
        if key == "goodput_per_s"
        else f"{percent(value)} of the limit"
    )
    return f"{made}, {'every target met' if row.met else 'a target missed'}"


def _said_losses(row: LossRow) -> str:
    said = [f"{row.gpus_left:,} GPUs left"]
    for key, form in _SAID.items():
        if (value := _value(row, key)) is not None:
            text = number if key == "goodput_per_s" else percent
            cases = band_text(row.band_of(key), text)
            said.append(form.format(text(value)) + (f"; 80 % of cases: {cases}" if cases else ""))
    return hover(f"{row.lost} lost", *said)
