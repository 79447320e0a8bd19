"""The Pareto front: what a GPU produces against what a user sees."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.plan_figures import _points
from simulator.results.answer import Answer

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
        "further right is faster for the reader. Lines are the best that each model can do on "
        "busy GPUs, in closed form, whatever the targets, with GPUs of their own for prompts "
        "where that is better. Large marks were simulated at the planned traffic, "
        "on a cluster that is paid for whole. Hover or tap for the whole deployment; "
        "pareto.csv holds every point."
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
