"""Cost of a plan's candidates against what they do."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.base.formats import amount, times
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED
from simulator.report.plan_figures import _points, _rows
from simulator.report.plan_looks import by_label, colour_of, is_striped, label_of
from simulator.results.answer import Answer, ParetoPoint
from simulator.results.answer.parts import band_text
from simulator.results.plan_text import gpus, hover, per_hour

_USER, _GPU = _points.Axis("tokens_per_s_user"), _points.Axis("tokens_per_s_gpu")
_REACH = 100.0
"""A GPU that makes less than its share of the best one's tokens serves one user alone, which nobody
plans for."""


class Front(Figure[Answer]):
    """A line a model: the deployments that no other beats in both; a plot a kind of machines."""

    title = "Tokens of a GPU against tokens of a user"
    section = "Speed and cost"
    definition = (
        "Output tokens per second, on logarithmic axes; further up is cheaper, "
        "further right is faster for the reader. Lines are the analytical optimum of each model on "
        "busy GPUs, whatever the targets, disaggregated where that is better. "
        "Large marks were simulated at the planned traffic, on a cluster that is paid for whole. "
        "Hover or tap for the whole deployment; pareto.csv holds every point."
    )
    absent = "No deployment was judged."
    order = 20
    width = "third"

    def draw(self, answer: Answer) -> dict[str, go.Figure]:
        points = [point for point in answer.pareto if point.tokens_per_s_gpu > 0]
        if not points:
            return {}
        made = [_GPU.value(point) for point in points]
        axes = {
            "xaxis": _points.axis_of([_USER.value(point) for point in points]),
            "yaxis": _points.axis_of(made, least=max(made) / _REACH),
        }
        clusters = list(dict.fromkeys(point.cluster for point in points))
        plots = {}
        for cluster in clusters:
            drawn = style.figure(
                "What a user sees (tokens/s)",
                "What a GPU makes (tokens/s)",
                396,
                **axes,
                **_points.ZOOMED,
            )
            here = [point for point in points if point.cluster == cluster]
            _points.add(drawn, answer, here, _USER, _GPU)
            plots[html.escape(cluster) if len(clusters) > 1 else ""] = drawn
        return plots


_COST = _points.Axis("cost_per_million_output_tokens")
_SPEED = _points.Axis("tokens_per_s_user", lambda tokens_per_s: 1000 / tokens_per_s)
"""Milliseconds per output token."""
_REACH_COST_LATENCY = 50.0
"""Tokens that cost more times as much as the cheapest lie beyond the plot's upper edge."""


class CostLatency(Figure[Answer]):
    """A line a model, over all machines: the cheapest tokens at each speed."""

    title = "Cost against latency"
    section = "Speed and cost"
    definition = (
        "Cost of a million output tokens against milliseconds between them, over all machines, "
        "on logarithmic axes; lower and further left is better. "
        "Lines are busy GPUs, analytically; large marks pay for the idle share of their cluster "
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
            "yaxis": _points.axis_of(costs, most=min(costs) * _REACH_COST_LATENCY),
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


class Models(Figure[Answer]):
    """A bar a model."""

    title = "The cheapest deployment of each model"
    section = "Models against each other"
    definition = (
        "Cost per hour of the cheapest cluster on which the model meets every target; "
        "striped bars are dense models. Whiskers: the cluster that would be needed, were its size "
        "chosen knowing the simulator's error. Models that are not shown do not meet every target "
        "on any cluster within the limits."
    )
    absent = "No model meets the targets."
    order = 10
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        rows = sorted(
            answer.best_of_each_model.values(), key=lambda row: (row.cost_per_hour, row.gpus)
        )
        if len(rows) < 2:
            return None
        is_priced = rows[-1].cost_per_hour > 0
        key = "cost_per_hour" if is_priced else "gpus"
        values = [row.cost_per_hour if is_priced else float(row.gpus) for row in rows]
        bars = []
        for row, value in zip(rows, values, strict=True):
            said = per_hour(value, answer) if is_priced else gpus(row)
            said += f", {times(value / values[0])}" if row is not rows[0] and values[0] else ""
            needed = row.band_of(f"needed_{key}")
            cases = band_text(needed, amount)
            bars.append(
                _rows.Row(
                    title=html.unescape(label_of(row)),
                    said=said,
                    end=value,
                    hover=hover(
                        row.deployment, said, f"80 % of cases need {cases}" if cases else ""
                    ),
                    colour=colour_of(answer, row),
                    is_striped=is_striped(row),
                    band=needed,
                )
            )
        axis = f"Cost per hour ({answer.currency})" if is_priced else "GPUs"
        return _rows.plot(bars, axis, range=[0, 1.02 * _rows.reach(bars)], nticks=6)

    def find(self, answer: Answer) -> Finding | None:
        costs = {
            name: row.cost_per_hour
            for name, row in answer.best_of_each_model.items()
            if row.cost_per_hour
        }
        return Finding("figure.cost", values=costs, currency=answer.currency) if costs else None
