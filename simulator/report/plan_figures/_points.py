"""Points of deployments: analytical fronts as lines, simulated ones as marks, the recommended one
as a star.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from simulator.base.formats import amount, batched_tokens, number, seconds
from simulator.report import style
from simulator.report.marks import log_axis
from simulator.report.plan_looks import SYMBOLS, by_label, colour_of, line_of, whiskers
from simulator.results.answer import Answer, DeploymentRow, ParetoPoint
from simulator.results.answer.parts import Band, band_text
from simulator.results.plan_text import (
    count_gpus,
    hover,
    kind_of,
    money,
    per_hour,
    target_short,
    value_text,
)

_SHADE = 0.14
"""Opacity of a line's band."""


class Axis(NamedTuple):
    """A figure of the points along an axis."""

    figure: str
    """The point's field."""
    change: Callable[[float], float] | None = None
    """Conversion into another unit, where the axis has one."""

    def value(self, point: ParetoPoint) -> float:
        """Place of a point on the axis."""
        value: float = getattr(point, self.figure)
        return value if self.change is None else self.change(value)

    def band(self, point: ParetoPoint) -> Band | None:
        """Band of a point's coordinate."""
        found = point.band_of(self.figure)
        return found if self.change is None or found is None else found.map_ends(self.change)


def axis_of(
    values: Sequence[float], least: float = 0.0, most: float = math.inf
) -> dict[str, object]:
    """A logarithmic axis that holds all values from ``least`` to ``most``; what lies beyond is seen
    when the reader zooms out.
    """
    low, high = max(min(values), least) / 1.25, min(max(values), most) * 1.25
    return log_axis(low, high)


ZOOMED: dict[str, Any] = {"margin_t": 34, "meta": {"toolbar": "wide"}}
"""Layout of a plot that is zoomed into: the toolbar stands above the points."""


def add(drawn: go.Figure, answer: Answer, points: list[ParetoPoint], x: Axis, y: Axis) -> None:
    """Lines, marks and the star of the points of one plot."""
    for label, own in by_label(points).items():
        line, symbol = line_of(answer, own[0]), SYMBOLS[kind_of(own[0])]
        tried = [point for point in own if point.is_simulated]
        front = sorted(
            (point for point in own if not point.is_simulated),
            key=lambda point: (x.value(point), y.value(point)),
        )
        if front:
            _shade(drawn, front, x, y, label, line["color"])
            drawn.add_scatter(
                **_places(front, x, y, answer),
                name=label,
                mode="lines+markers",
                line=line,
                marker={"color": line["color"], "size": 4, "symbol": symbol},
            )
        if tried:
            drawn.add_scatter(
                **_places(tried, x, y, answer),
                **_whiskers(tried, x, y, line["color"]),
                name=label,
                showlegend=not front,
                mode="markers",
                line=line,
                marker=_outline(line["color"], symbol, 11, 1.5),
            )
    best = draw_recommended(answer, points)
    if best is not None:
        # In its model's colour: a colour means a model on the whole page, a star means recommended.
        colour = colour_of(answer, best)
        drawn.add_scatter(
            **_places([best], x, y, answer),
            name="recommended",
            mode="markers",
            line={"color": colour},
            marker=_outline(colour, "star", 19, 2),
        )


def _outline(colour: str, symbol: str, size: int, width: float) -> dict[str, object]:
    """A mark with an edge that is seen on light and on dark."""
    edge = {"color": style.MUTED, "width": width}
    return {"color": colour, "size": size, "symbol": symbol, "line": edge}


def draw_recommended(answer: Answer, points: Sequence[ParetoPoint]) -> ParetoPoint | None:
    """The recommended deployment among the points that were simulated."""
    best = answer.recommended
    if best is None:
        return None
    found = [
        point
        for point in points
        if point.is_simulated and point.deployment.startswith(best.deployment)
    ]
    exact = (point for point in found if point.deployment == _text(best))
    return next(exact, found[0] if found else None)


def _text(row: DeploymentRow) -> str:
    """A candidate as points are called."""
    return f"{row.deployment}, {batched_tokens(row.token_budget)}"


def _shade(
    drawn: go.Figure, front: list[ParetoPoint], x: Axis, y: Axis, label: str, colour: str
) -> None:
    """The band of a line, from the low ends to the high ones; it hides with the line."""
    bands = [
        (x.value(point), found)
        for point in front
        if (found := y.band(point)) and 0 < found.low < found.high < math.inf
    ]
    if len(bands) < 2:
        return
    there = [(place, found.low) for place, found in bands]
    back = [(place, found.high) for place, found in reversed(bands)]
    drawn.add_scatter(
        x=[place for place, _ in (*there, *back)],
        y=[end for _, end in (*there, *back)],
        name=label,
        showlegend=False,
        mode="lines",
        line={"width": 0, "color": colour},
        fill="toself",
        fillcolor=style.fade_colour(colour, _SHADE),
        hoverinfo="skip",
    )


def _whiskers(points: list[ParetoPoint], x: Axis, y: Axis, colour: str) -> dict[str, object]:
    found = {
        f"error_{name}": whiskers(
            [axis.value(point) for point in points], [axis.band(point) for point in points], colour
        )
        for name, axis in (("x", x), ("y", y))
    }
    return {name: bars for name, bars in found.items() if bars}


def _places(points: list[ParetoPoint], x: Axis, y: Axis, answer: Answer) -> dict[str, object]:
    return {
        "x": [x.value(point) for point in points],
        "y": [y.value(point) for point in points],
        "text": [said(point, answer) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
    }


def said(point: ParetoPoint, answer: Answer) -> str:
    """A point's hover text: the whole deployment, what it does and costs, and what was measured of
    it.
    """
    speed, cost = point.tokens_per_s_user, point.cost_per_million_output_tokens
    lines = [
        point.deployment,
        (
            f"{number(speed)} tokens/s a "
            f"user{_cases(point, 'tokens_per_s_user', number)}, {seconds(1 / speed)} a token"
        ),
        (
            f"{number(point.tokens_per_s_gpu)} tokens/s a "
            f"GPU{_cases(point, 'tokens_per_s_gpu', number)}"
        ),
    ]
    if cost:
        lines.append(
            f"{money(cost, answer.currency)} per 1M tokens "
            f"out{_cases(point, 'cost_per_million_output_tokens', amount)}"
        )
    if not point.is_simulated:
        return hover(*lines, "analytical, a busy replica")
    return hover(*lines, *_list_facts(point, answer), "simulated at the planned traffic")


def _cases(point: ParetoPoint, figure: str, text: Callable[[float], str]) -> str:
    found = band_text(point.band_of(figure), text)
    return f" ({found})" if found else ""


def _list_facts(point: ParetoPoint, answer: Answer) -> list[str]:
    """Facts of the table of candidates on this deployment."""
    row = next((row for row in answer.candidates if _text(row) == point.deployment), None)
    if row is None:
        return []
    cluster = count_gpus(row.gpus)
    if row.cost_per_hour:
        cluster += f", {per_hour(row.cost_per_hour, answer)}"
    kept = [
        f"{target_short(name)} {value_text(name, value)}"
        for name in answer.targets
        if (value := row.measured_value(name)) is not None
    ]
    return [cluster, ", ".join(kept)] if kept else [cluster]
