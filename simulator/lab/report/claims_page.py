"""The page of claims: what people say, the verdict, the conditions that turn it, and what was
measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go

from simulator.base.formats import times
from simulator.lab.results.claims import (
    VERDICTS,
    Case,
    Chart,
    ClaimAnswer,
    ClaimsResults,
    list_advice,
    list_turns,
    make_map,
    name_condition,
)
from simulator.report import style
from simulator.report.deployment_tables import describe_making
from simulator.report.front import Gauge, make_front, make_mark
from simulator.report.gallery import FigureCards, pair_up
from simulator.report.rendering import render_page
from simulator.results.answer.parts import Band

_OUTCOMES = {"for": "speaks for it", "against": "speaks against it", "open": "leaves it open"}


def render(results: ClaimsResults) -> str:
    """The page as one HTML document that opens offline."""
    cards = FigureCards()
    return render_page(
        "claims.html",
        str(results.run["name"]),
        cards,
        front=make_front(
            str(results.run["name"]),
            results.run["verdict"],
            gauges=list(map(_draw_gauge, results.answers)),
        ),
        claims=[_show_claim(answer, cards) for answer in results.answers],
        advice=[(answer.statement, list_advice(answer.cases)) for answer in results.answers],
        verdicts=VERDICTS,
        outcomes=_OUTCOMES,
        seeds=results.run["seeds"],
        making={"Command": results.run.get("command")} | describe_making(results.run),
    )


_MOST_MARKS = 6


def _draw_gauge(answer: ClaimAnswer) -> Gauge:
    """Ratios of what is claimed, by the condition of the first map."""
    by = answer.maps[0][0] if answer.maps else "rival"
    ratios: dict[str, list[float]] = {}
    for case in answer.cases:
        value = case.place.get(by)
        if case.counts and case.ratio is not None and value is not None:
            ratios.setdefault(value, []).append(case.ratio)
    swatch = style.swatch(style.colour_at(0), is_striped=False)
    marks = [
        make_mark(value, swatch, median(own), Band(min(own), max(own)), times)
        for value, own in list(ratios.items())[:_MOST_MARKS]
    ]
    return Gauge(
        answer.statement, marks, 1.0, f"by {name_condition(by)}: middle and range; line: no gain"
    )


def _show_claim(answer: ClaimAnswer, cards: FigureCards) -> dict[str, object]:
    measured = answer.measured.cases if answer.measured else ()
    return {
        "answer": answer,
        "maps": [_show_map(answer, row, column) for row, column in answer.maps],
        "turns": list(list_turns([case for case in answer.cases if case.counts])),
        "charts": pair_up(
            cards, [(chart.title, chart.caption, _draw(chart)) for chart in answer.charts]
        ),
        "conditions": _list_conditions(answer.cases),
        "rows": [_show_case(case) for case in answer.cases],
        "measured_conditions": _list_conditions(measured),
        "measured_rows": [_show_case(case) for case in measured],
    }


def _list_conditions(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in case.conditions))


def _show_map(answer: ClaimAnswer, row: str, column: str) -> dict[str, object]:
    rows, columns, cells = make_map(answer.cases, row, column)
    names = {"row": name_condition(row), "column": name_condition(column)}
    return {**names, "rows": rows, "columns": columns, "cells": cells}


def _show_case(case: Case) -> dict[str, object]:
    ratio = case.alone if case.ratio is None else f"{case.ratio:.3g}"
    if case.low is not None and case.high is not None and case.low < case.high:
        ratio += f" ({case.low:.3g} to {case.high:.3g})"
    return {"case": case, "ratio": ratio}


def _draw(chart: Chart) -> go.Figure:
    drawn = style.figure(chart.x, chart.y, 320)
    for place, curve in enumerate(chart.curves):
        is_point = len(curve.x) == 1
        drawn.add_scatter(
            x=list(curve.x),
            y=list(curve.y),
            name=curve.name,
            mode="markers" if is_point else "lines",
            line=style.line_at(place),
            marker={"color": style.colour_at(place), "size": 11, "symbol": "diamond"},
            hovertemplate=f"%{{y:.3~g}} at %{{x:.3~g}}<extra>{curve.name}</extra>",
        )
    if chart.is_log:
        drawn.update_xaxes(type="log", dtick=0.30103 * 2)
    drawn.update_yaxes(rangemode="tozero")
    return drawn
