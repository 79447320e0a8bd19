"""Cost of a token against its latency."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED
from simulator.report.model_colours import by_label
from simulator.report.plan_figures import _points
from simulator.results.answer import Answer, ParetoPoint

_COST = _points.Axis("cost_per_million_output_tokens")
_SPEED = _points.Axis("tokens_per_s_user", lambda tokens_per_s: 1000 / tokens_per_s)
"""Milliseconds per output token."""
_REACH = 50.0
"""Tokens that cost more times as much as the cheapest lie beyond the plot's upper edge."""


class CostLatency(Figure[Answer]):
    """A line a model, over all machines: the cheapest tokens at each speed."""

    title = "Cost against latency"
    section = "Speed and cost"
    definition = (
        "Cost of a million output tokens against milliseconds between them, over all machines, "
        "on logarithmic axes; lower and further left is better. "
        "Lines are busy GPUs in closed form; large marks pay for the idle share of their cluster "
        "at the planned traffic too, so they lie higher. The dotted line is the target."
    )
    absent = "The machines have no price."
    order = 21
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        points = [point for point in answer.pareto if point.cost_per_million_output_tokens > 0]
        if not points:
            return None
        limits = [
            1000 * limit for name, limit in answer.targets.items() if name.startswith("tpot_s.")
        ]
        kept = [point for point in points if point.is_simulated]
        for own in by_label([point for point in points if not point.is_simulated]).values():
            kept += _cheapest(own)
        costs = [_COST.value(point) for point in kept]
        axes = {
            "xaxis": _points.axis_of([*(_SPEED.value(point) for point in kept), *limits]),
            "yaxis": _points.axis_of(costs, most=min(costs) * _REACH),
        }
        drawn = style.figure(
            "Time per output token (ms)",
            f"Cost of a million output tokens ({answer.currency})",
            416,
            **axes,
            **_points.ZOOMED,
        )
        _points.add(drawn, answer, kept, _SPEED, _COST)
        for limit in limits:
            drawn.add_vline(x=limit, line=DOTTED)
        return drawn


def _cheapest(points: list[ParetoPoint]) -> list[ParetoPoint]:
    """Points that no other beats in speed and cost, the fastest first."""
    best, found = float("inf"), []
    for point in sorted(points, key=lambda p: (_SPEED.value(p), _COST.value(p))):
        if _COST.value(point) < best:
            best = _COST.value(point)
            found.append(point)
    return found
