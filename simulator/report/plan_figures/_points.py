"""Points of deployments: the closed form's fronts as lines, what was simulated as marks, the
recommended one as a star.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.model_colours import SYMBOLS, by_label, colour_of, line_of
from simulator.report.plan_bands import band, between, whiskers
from simulator.results.formats import log_ticks, number, seconds
from simulator.results.plan_text import amount, hover, kind_of, money, target_short, value_text

_SHADE = 0.14
"""How much of a line's band shows."""


def simulated(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were simulated."""
    return [point for point in points if point["kind"] == "simulated"]


def closed_form(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the screen."""
    return [point for point in points if point["kind"] != "simulated"]


def log_axis(values: Sequence[float], least: float = 0.0, most: float = math.inf) -> dict[str, Any]:
    """A logarithmic axis that holds all values from ``least`` to ``most``; what lies beyond is seen
    when the reader zooms out.
    """
    low, high = max(min(values), least) / 1.25, min(max(values), most) * 1.25
    return {"type": "log", "range": [math.log10(low), math.log10(high)], **log_ticks(low, high)}


ZOOMED: dict[str, Any] = {"margin_t": 34, "meta": {"toolbar": "wide"}}
"""Layout of a plot that is zoomed into: the toolbar stands above the points."""


def add(
    drawn: go.Figure, answer: dict[str, Any], points: list[dict[str, Any]], x: str, y: str
) -> None:
    """Lines, marks and the star.

    Args:
        points: those of one plot.
        x: key of the horizontal axis; likewise y.
    """
    for label, own in by_label(points).items():
        line, symbol = line_of(answer, own[0]), SYMBOLS[kind_of(own[0])]
        front, tried = (
            sorted(closed_form(own), key=lambda point: (point[x], point[y])),
            simulated(own),
        )
        if front:
            _shade(drawn, front, x, y, label, line["color"])
            look = {"color": line["color"], "size": 4, "symbol": symbol}
            drawn.add_scatter(
                **_places(front, x, y, answer),
                name=label,
                mode="lines+markers",
                line=line,
                marker=look,
            )
        if tried:
            look = {
                "color": line["color"],
                "size": 11,
                "symbol": symbol,
                "line": {"color": style.MUTED, "width": 1.5},
            }
            drawn.add_scatter(
                **_places(tried, x, y, answer),
                **_whiskers(tried, x, y, line["color"]),
                name=label,
                showlegend=not front,
                mode="markers",
                line=line,
                marker=look,
            )
    best = recommended(answer, points)
    if best is not None:
        colour = colour_of(answer, best)
        # In its model's colour: a colour means a model on the whole page, a star means recommended.
        look = {
            "color": colour,
            "size": 19,
            "symbol": "star",
            "line": {"color": style.MUTED, "width": 2},
        }
        drawn.add_scatter(
            **_places([best], x, y, answer),
            name="recommended",
            mode="markers",
            line={"color": colour},
            marker=look,
        )


def recommended(answer: dict[str, Any], points: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The recommended deployment among the points that were simulated."""
    best = answer.get("recommended") or {}
    found = [
        point
        for point in simulated(points)
        if point["deployment"].startswith(str(best.get("deployment")))
    ]
    return next(
        (point for point in found if point["deployment"] == _text(best)),
        found[0] if found else None,
    )


def _text(row: dict[str, Any]) -> str:
    """A candidate as points are called."""
    return f"{row.get('deployment')}, {row.get('token_budget', 0):,} tokens a step"


def _shade(
    drawn: go.Figure, front: list[dict[str, Any]], x: str, y: str, label: str, colour: str
) -> None:
    """The band of a line, from the low ends to the high ones; it hides with the line."""
    bands = [
        (point[x], found)
        for point in front
        if (found := band(point, y)) and 0 < found.low < found.high < math.inf
    ]
    if len(bands) < 2:
        return
    places = [place for place, _ in bands]
    drawn.add_scatter(
        x=[_digits(place) for place in [*places, *reversed(places)]],
        y=[
            _digits(end)
            for end in [
                *(found.low for _, found in bands),
                *(found.high for _, found in reversed(bands)),
            ]
        ],
        name=label,
        showlegend=False,
        mode="lines",
        line={"width": 0, "color": colour},
        fill="toself",
        fillcolor=style.faded(colour, _SHADE),
        hoverinfo="skip",
    )


def _whiskers(points: list[dict[str, Any]], x: str, y: str, colour: str) -> dict[str, Any]:
    found = {
        f"error_{axis}": whiskers(
            [point[key] for point in points], [band(point, key) for point in points], colour
        )
        for axis, key in (("x", x), ("y", y))
    }
    return {name: bars for name, bars in found.items() if bars}


def _places(points: list[dict[str, Any]], x: str, y: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "x": [_digits(point[x]) for point in points],
        "y": [_digits(point[y]) for point in points],
        "text": [said(point, answer) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _digits(value: float) -> float:
    """Four digits are more than a plot shows."""
    return float(f"{value:.4g}")


def said(point: dict[str, Any], answer: dict[str, Any]) -> str:
    """A point's hover text: the whole deployment, what it does and costs, and what was measured of
    it.
    """
    currency, cost = answer.get("currency", "USD"), point.get("cost_per_million_output_tokens")
    speed = point["tokens_per_s_user"]
    lines = [
        point["deployment"],
        (
            f"{number(speed)} tokens/s a "
            f"user{_cases(point, 'tokens_per_s_user', number)}, {seconds(1 / speed)} a token"
        ),
        (
            f"{number(point['tokens_per_s_gpu'])} tokens/s a "
            f"GPU{_cases(point, 'tokens_per_s_gpu', number)}"
        ),
    ]
    if cost:
        lines.append(
            f"{money(cost, currency)} per 1M tokens "
            f"out{_cases(point, 'cost_per_million_output_tokens', amount)}"
        )
    if point["kind"] != "simulated":
        return hover(*lines, "closed form, a busy replica")
    return hover(*lines, *_measured(point, answer), "simulated at the planned traffic")


def _cases(point: dict[str, Any], key: str, text: Callable[[float], str]) -> str:
    found = between(band(point, key), text)
    return f" ({found})" if found else ""


def _measured(point: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    """What the table says of this deployment too."""
    row = next(
        (row for row in answer.get("candidates", []) if _text(row) == point["deployment"]), None
    )
    if row is None:
        return []
    cluster = f"{row['gpus']:,} {'GPU' if row['gpus'] == 1 else 'GPUs'}"
    if row.get("cost_per_hour"):
        cluster += f", {money(row['cost_per_hour'], answer.get('currency', 'USD'))} per hour"
    limits = answer.get("targets", {})
    kept = [
        f"{target_short(name)} {value_text(name, row[name])}"
        for name in limits
        if row.get(name) is not None
    ]
    return [cluster, ", ".join(kept)] if kept else [cluster]
