"""The page of a benchmark: what was asked and what was found, how cost grows, and every figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from simulator.base.formats import count, num_bytes, parameters, time_ticks
from simulator.report import style
from simulator.report.deployment_tables import describe_making
from simulator.report.gallery import Card, FigureCards, pair_up
from simulator.report.rendering import environment, render_page
from tests.benchmarks.collect import title_of
from tests.benchmarks.history import draw_history
from tests.benchmarks.rows import (
    Bench,
    Growth,
    Row,
    by_kind,
    tell_judged,
    tell_ratio,
    tell_target,
    tell_value,
)

_BUSY_LOAD = 0.5
"""Load average from which on somebody else was at work."""
_HEIGHT = 320


def render(bench: Bench, history: pd.DataFrame) -> str:
    """The page as one HTML document.

    Args:
        history: what :func:`tests.benchmarks.history.read_history` reads.
    """
    cards = FigureCards()
    template = Path(__file__).with_name("bench.html").read_text(encoding="utf-8")
    return render_page(
        environment().from_string(template),
        "Benchmark",
        cards,
        headline=tell_headline(bench),
        missed=_list_missed(bench),
        setting=_describe_setting(bench),
        was_busy=_was_busy(bench.made["machine"]),
        targets=bench.with_target,
        growth=_draw_growths(cards, bench.growths),
        history=draw_history(cards, history),
        figures={title_of(kind): rows for kind, rows in by_kind(bench.rows).items()},
        making=_making(bench),
        remark=_remark,
        tell_judged=tell_judged,
        tell_ratio=tell_ratio,
        tell_target=tell_target,
        tell_value=tell_value,
    )


def tell_headline(bench: Bench) -> str:
    """How many targets are met."""
    judged = [row for row in bench.with_target if row.is_met is not None]
    if not judged:
        return f"{count(len(bench.rows), 'figure')}; no target could be judged."
    met = sum(row.is_met is True for row in judged)
    return f"{met} of {len(judged)} targets that could be judged are met."


def _list_missed(bench: Bench) -> list[str]:
    return [
        f"Missed: {row.name}, {row.measure}: {tell_judged(row)}; asked {tell_target(row)}."
        for row in bench.with_target
        if row.is_met is False
    ]


def _describe_setting(bench: Bench) -> dict[str, object]:
    machine = bench.made["machine"]
    return {
        "Processor": machine["processor"],
        "Cores": machine["cores"],
        "Memory": num_bytes(machine["memory_bytes"]),
        "Load when it began": machine["load_average_1_min"],
        "Revision": bench.made["revision"],
        "Effort": bench.made["effort"],
    }


def _was_busy(machine: dict[str, Any]) -> bool:
    """Whether others kept half of a core or more."""
    return bool(machine["load_average_1_min"] >= _BUSY_LOAD)


def _remark(row: Row) -> str:
    """What a ratio is made of, or why nothing was judged."""
    if row.is_met is None:
        return row.note
    if row.target_of == "value":
        return ""
    own, other = (tell_value(value, row.unit) for value in (row.value, row.beside_value))
    return f"{own} over {other} of {row.beside}"


def _draw_growths(cards: FigureCards, growths: Sequence[Growth]) -> list[Card]:
    by_size: dict[str, list[Growth]] = {}
    for growth in growths:
        by_size.setdefault(growth.along, []).append(growth)
    drawn = []
    for along, own in by_size.items():
        said = "; ".join(f"{growth.name}: exponent {growth.exponent:.2f}" for growth in own)
        drawn.append((f"Over {along}", f"{said}.", _draw(own)))
    return pair_up(cards, drawn)


def _draw(growths: Sequence[Growth]) -> go.Figure:
    """Points and fitted lines of everything that was followed over one size."""
    drawn = style.figure(growths[0].along.capitalize(), "CPU time", _HEIGHT)
    for growth, colour in zip(growths, style.DEPLOYMENT_COLOURS, strict=False):
        drawn.add_scatter(
            x=list(growth.sizes),
            y=list(growth.cpu_s),
            name=growth.name,
            mode="markers",
            marker={"color": colour, "size": 8},
            line={"color": colour},
            text=[tell_value(value, "s") for value in growth.cpu_s],
            hovertemplate=f"%{{text}} at %{{x:,}} {growth.along}<extra>{growth.name}</extra>",
        )
        ends = [growth.sizes[0], growth.sizes[-1]]
        drawn.add_scatter(
            x=ends,
            y=_line(growth, ends),
            name=growth.name,
            showlegend=False,
            mode="lines",
            line={"color": colour, "width": 1.5},
            hoverinfo="skip",
        )
    sizes = [size for growth in growths for size in growth.sizes]
    times = [value for growth in growths for value in growth.cpu_s]
    low, high = min(sizes) / 1.2, max(sizes) * 1.2
    quick, slow = min(times) / 2, max(times) * 2
    drawn.update_xaxes(
        type="log", range=[math.log10(low), math.log10(high)], **_size_ticks(growths[0].sizes)
    )
    edges = [math.log10(quick), math.log10(slow)]
    drawn.update_yaxes(type="log", range=edges, **time_ticks(quick, slow))
    return drawn


def _size_ticks(sizes: Sequence[int]) -> dict[str, list[float] | list[str]]:
    """The sizes themselves, short enough for a phone: all growths over one size have the same."""
    return {"tickvals": list(map(float, sizes)), "ticktext": [parameters(size) for size in sizes]}


def _line(growth: Growth, sizes: Sequence[float]) -> list[float]:
    """The fitted line at these sizes: it goes through the mean of the points' logarithms."""
    mean_x, mean_y = (
        sum(map(math.log, values)) / len(values) for values in (growth.sizes, growth.cpu_s)
    )
    return [math.exp(mean_y + growth.exponent * (math.log(size) - mean_x)) for size in sizes]


def _making(bench: Bench) -> dict[str, object]:
    made, machine = bench.made, bench.made["machine"]
    return {
        "Command": made["command"],
        "Processor": f"{machine['processor']}, {machine['cores']} cores",
        "System": machine["system"],
        **describe_making(made),
    }
