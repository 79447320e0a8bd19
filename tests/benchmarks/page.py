"""The page of a benchmark: what was asked and what was found, how cost grows, and every figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from simulator.report import style, tables
from simulator.report.cards import Cards
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.markup import Markup, tag
from simulator.report.scoreboard_tables import verdict
from simulator.results.formats import num_bytes, parameters, time_ticks
from tests.benchmarks.collect import title_of
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

_TARGETS = (
    "What was asked of the engine when it was rebuilt around one clock, and what was found here. "
    "A ratio is over the revision before that, measured in turns with this one."
)
_GROWTH = (
    "CPU time over a size, both on logarithmic axes: medians as points, and the straight line "
    "through them, whose slope is the exponent: 1 where cost grows as the size does, 0 where it "
    "does not grow."
)
_FIGURES = (
    "CPU time is that of one process. Where several rounds are named, a figure is their median, "
    "and what stands beside it was measured in turns with it. A ratio above 1 is in our favour."
)
_BUSY = (
    "Other programs ran when this began: caches and clocks were shared, so that everything reads "
    "slower than on an idle machine. Ratios were measured in turns."
)
_BUSY_LOAD = 0.5
"""Load average from which on somebody else was at work."""
_HEIGHT = 320


def render(bench: Bench) -> str:
    """The page as one HTML document."""
    cards = Cards()
    sections: list[tuple[str, Markup]] = []
    if bench.with_target:
        sections.append(("Targets", described(_TARGETS, _targets_table(bench.with_target))))
    if bench.growths:
        sections.append(("How cost grows", described(_GROWTH, _growth_cards(cards, bench.growths))))
    sections.append(("Every figure", described(_FIGURES, _figures_table(bench.rows))))
    sections.append(("How this was made", facts_list(_making(bench))))
    return document("Benchmark", in_sections(_header(bench), sections), cards.payload)


def tell_headline(bench: Bench) -> str:
    """How many targets are met."""
    judged = [row for row in bench.with_target if row.is_met is not None]
    if not judged:
        count = len(bench.rows)
        return f"{count} {'figure' if count == 1 else 'figures'}; no target could be judged."
    met = sum(row.is_met is True for row in judged)
    return f"{met} of {len(judged)} targets that could be judged are met."


def _header(bench: Bench) -> Markup:
    missed = [
        tag(
            "li",
            f"Missed: {row.name}, {row.measure}: {tell_judged(row)}; asked {tell_target(row)}.",
        )
        for row in bench.with_target
        if row.is_met is False
    ]
    machine = bench.made["machine"]
    facts = {
        "Processor": machine["processor"],
        "Cores": machine["cores"],
        "Memory": num_bytes(machine["memory_bytes"]),
        "Load when it began": machine["load_average_1_min"],
        "Revision": bench.made["revision"],
        "Effort": bench.made["effort"],
    }
    return tag(
        "header",
        tag("p", "Benchmark", class_="eyebrow"),
        tag("h1", tell_headline(bench)),
        *([tag("ul", *missed, class_="reasons")] if missed else []),
        facts_list(facts, "setting"),
        *([tag("p", _BUSY, class_="notice")] if _was_busy(machine) else []),
    )


def _was_busy(machine: dict[str, Any]) -> bool:
    """Whether others kept half of a core or more."""
    return bool(machine["load_average_1_min"] >= _BUSY_LOAD)


def _targets_table(rows: Sequence[Row]) -> Markup:
    made = [
        tag(
            "tr",
            tag("td", f"{row.name}: {row.measure}"),
            tag("td", tell_judged(row), class_="value", data_label="Found"),
            tag("td", tell_target(row), class_="value", data_label="Asked"),
            tag("td", verdict(row.is_met), class_="value", data_label="Verdict"),
            tag("td", _remark(row), data_label="Remark"),
        )
        for row in rows
    ]
    head = ["What", "Found", "Asked", "Verdict", "Remark"]
    return tables.table(head, made, "assumptions stack", "Targets")


def _remark(row: Row) -> str:
    """What a ratio is made of, or why nothing was judged."""
    if row.is_met is None:
        return row.note
    if row.target_of == "value":
        return ""
    own, other = (tell_value(value, row.unit) for value in (row.value, row.beside_value))
    return f"{own} over {other} of {row.beside}"


def _growth_cards(cards: Cards, growths: Sequence[Growth]) -> Markup:
    by_size: dict[str, list[Growth]] = {}
    for growth in growths:
        by_size.setdefault(growth.along, []).append(growth)
    drawn = []
    for place, (along, own) in enumerate(by_size.items()):
        said = "; ".join(f"{growth.name}: exponent {growth.exponent:.2f}" for growth in own)
        # The last of an odd number takes its row alone.
        has_neighbour = place < len(by_size) - len(by_size) % 2
        title = f"Over {along}"
        drawn.append(cards.card(title, f"{said}.", {"": _draw(own)}, spans_half=has_neighbour))
    return tag("div", *drawn, class_="cards")


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


def _figures_table(rows: Sequence[Row]) -> Markup:
    head = ["What", "Figure", "Beside", "Ratio", "Rounds", "Note"]
    made = []
    for kind, own in by_kind(rows).items():
        title = tag("span", title_of(kind))
        made.append(
            tag("tr", tag("th", title, colspan=len(head), scope="rowgroup"), class_="group")
        )
        made += [_figure_row(row) for row in own]
    return tables.table(head, made, "assumptions stack", "Every figure")


def _figure_row(row: Row) -> Markup:
    beside = f"{tell_value(row.beside_value, row.unit)} {row.beside}" if row.beside else ""
    ratio = tell_ratio(row.ratio) if row.beside else ""
    return tag(
        "tr",
        tag("td", row.name, tag("span", row.measure, class_="hint")),
        tag("td", tell_value(row.value, row.unit), class_="value", data_label="Figure"),
        tag("td", beside, data_label="Beside"),
        tag("td", ratio, class_=bool(ratio) and "value", data_label="Ratio"),
        tag("td", f"{row.rounds}", class_="value", data_label="Rounds"),
        tag("td", row.note, data_label="Note"),
    )


def _making(bench: Bench) -> dict[str, object]:
    made, machine = bench.made, bench.made["machine"]
    return {
        "Command": made["command"],
        "Processor": f"{machine['processor']}, {machine['cores']} cores",
        "System": machine["system"],
        **tables.made_of(made),
    }
