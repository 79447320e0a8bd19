"""Points of deployments: the closed form's fronts as lines, what was simulated as marks, the recommended one as a star."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.formats import log_ticks, number, seconds
from simulator.report.plan_figures._models import SYMBOLS, by_label, line_of
from simulator.report.plan_text import hover, kind_of, money


def simulated(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were simulated."""
    return [point for point in points if point["kind"] == "simulated"]


def closed_form(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the screen."""
    return [point for point in points if point["kind"] != "simulated"]


def log_axis(values: Sequence[float], least: float = 0.0, most: float = math.inf) -> dict[str, Any]:
    """A logarithmic axis that holds all values from ``least`` to ``most``; what lies beyond is seen when the reader zooms out."""
    low, high = max(min(values), least) / 1.25, min(max(values), most) * 1.25
    return {"type": "log", "range": [math.log10(low), math.log10(high)], **log_ticks(low, high)}


def add(drawn: go.Figure, answer: dict[str, Any], points: list[dict[str, Any]], x: str, y: str) -> None:
    """Lines, marks and the star.

    Args:
        points: those of one plot.
        x: key of the horizontal axis; likewise y.
    """
    for label, own in by_label(points).items():
        line = line_of(answer, own[0])
        front = closed_form(own)
        if front:
            drawn.add_scatter(
                **_places(front, x, y, answer),
                name=label,
                mode="lines+markers",
                line=line,
                marker={"color": line["color"], "size": 4, "symbol": SYMBOLS[kind_of(own[0])]},
            )
        tried = simulated(own)
        if tried:
            drawn.add_scatter(
                **_places(tried, x, y, answer),
                name=label,
                showlegend=not front,
                mode="markers",
                line=line,
                marker={
                    "color": line["color"],
                    "size": 11,
                    "symbol": SYMBOLS[kind_of(own[0])],
                    "line": {"color": style.MUTED, "width": 1.5},
                },
            )
    best = recommended(answer, points)
    if best is not None:
        drawn.add_scatter(
            **_places([best], x, y, answer),
            name="recommended",
            mode="markers",
            line={"color": _STAR},
            marker={"color": _STAR, "size": 17, "symbol": "star", "line": {"color": style.MUTED, "width": 1}},
        )


_STAR = "#E69F00"


def recommended(answer: dict[str, Any], points: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The recommended deployment among the points that were simulated."""
    best = answer.get("recommended") or {}
    return next((point for point in simulated(points) if point["deployment"].startswith(str(best.get("deployment")))), None)


def _places(points: list[dict[str, Any]], x: str, y: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "x": [_digits(point[x]) for point in points],
        "y": [_digits(point[y]) for point in points],
        "text": [_said(point, answer) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _digits(value: float) -> float:
    """Four digits are more than a plot shows."""
    return float(f"{value:.4g}")


def _said(point: dict[str, Any], answer: dict[str, Any]) -> str:
    lines = [
        point["deployment"],
        f"{number(point['tokens_per_s_user'])} tokens/s a user, {number(point['tokens_per_s_gpu'])} a GPU",
        f"{seconds(1 / point['tokens_per_s_user'])} per output token",
    ]
    if point.get("cost_per_million_output_tokens"):
        lines.append(f"{money(point['cost_per_million_output_tokens'], answer.get('currency', 'USD'))} per million output tokens")
    return hover(*lines, "simulated at the planned traffic" if point["kind"] == "simulated" else "closed form, a busy replica")
