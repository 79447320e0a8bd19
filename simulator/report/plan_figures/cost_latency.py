"""What a token costs against how fast it comes."""

from __future__ import annotations

from typing import Any, ClassVar

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.model_colours import by_label
from simulator.report.plan_bands import band
from simulator.report.plan_figures import _points
from simulator.report.plan_figures._wide import Wide

_COST, _SPEED = "cost_per_million_output_tokens", "ms_per_token"

_REACH = 50.0
"""Tokens that cost more times as much as the cheapest lie beyond the plot's upper edge."""


class CostLatency(Wide):
    """A line a model, over all machines: the cheapest tokens at each speed."""

    title: ClassVar[str] = "Cost against latency"
    section: ClassVar[str] = "Speed and cost"
    definition: ClassVar[str] = (
        "Cost of a million output tokens against milliseconds between them, over all machines, "
        "on logarithmic axes; lower and further left is better. "
        "Lines are busy GPUs in closed form; large marks pay for the idle share of their cluster "
        "at the planned traffic too, so they lie higher. The dotted line is the target."
    )
    absent: ClassVar[str] = "The machines have no price."
    order: ClassVar[int] = 21

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        points = [_timed(point) for point in answer.get("pareto", []) if point.get(_COST, 0) > 0]
        if not points:
            return None
        limits = [
            1000 * limit
            for name, limit in answer.get("targets", {}).items()
            if name.startswith("tpot_s.")
        ]
        kept = _points.simulated(points)
        for own in by_label(_points.closed_form(points)).values():
            kept += _cheapest(own)
        currency = answer.get("currency", "USD")
        costs = [point[_COST] for point in kept]
        axes = {
            "xaxis": _points.log_axis([*(point[_SPEED] for point in kept), *limits]),
            "yaxis": _points.log_axis(costs, most=min(costs) * _REACH),
        }
        drawn = style.figure(
            "Time per output token (ms)",
            f"Cost of a million output tokens ({currency})",
            416,
            **axes,
            **_points.ZOOMED,
        )
        _points.add(drawn, answer, kept, _SPEED, _COST)
        for limit in limits:
            drawn.add_vline(x=limit, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return drawn


def _timed(point: dict[str, Any]) -> dict[str, Any]:
    """A point with its time per output token, and the band of it."""
    found = band(point, "tokens_per_s_user")
    low, high = found.mapped(_milliseconds) if found else (None, None)
    return {
        **point,
        _SPEED: _milliseconds(point["tokens_per_s_user"]),
        f"{_SPEED}_low": low,
        f"{_SPEED}_high": high,
    }


def _milliseconds(tokens_per_s: float) -> float:
    return 1000 / tokens_per_s


def _cheapest(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points that no other beats in speed and cost, the fastest first."""
    best, found = float("inf"), []
    for point in sorted(points, key=lambda p: (p[_SPEED], p[_COST])):
        if point[_COST] < best:
            best = point[_COST]
            found.append(point)
    return found
