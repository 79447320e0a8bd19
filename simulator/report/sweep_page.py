"""The page of a sweep: how figures move with what was swept, a line a deployment, with their spread
over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style, tables
from simulator.report.cards import Cards
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.markup import Markup, join, tag
from simulator.results.formats import (
    KEY_METRICS,
    TIMES,
    UNDEFINED,
    heading_unit,
    metric,
    time_axis,
    time_ticks,
)
from simulator.results.metrics import METRICS
from simulator.results.sweep import Sweep, measure_spread
from simulator.results.sweep_text import setting_text, tell_sweep, value_text

_FIGURES = (*KEY_METRICS, "e2e_p50_s", "output_tokens_per_s", "load_imbalance", "num_lost")
_SPREAD = " Whiskers reach from the lowest to the highest seed."
_WIDE = 20.0
"""Longest over shortest time from which on an axis is logarithmic."""
_MOST_TICKS = 8
_ALL = (
    "Mean over seeds, and behind it the standard deviation of single seeds. Each point is a run of "
    "its own, whose page lies in the folder points."
)


def render(sweep: Sweep) -> str:
    """The page as one HTML document."""
    cards = Cards()
    headline, reasons = tell_sweep(sweep)
    sections: list[tuple[str, Markup]] = []
    if drawn := list(_cards(cards, sweep)):
        sections.append(("What moves", tag("div", *drawn, class_="cards")))
    sections.append(("All settings", described(_ALL, _table(sweep))))
    if refused := _refused(sweep):
        sections.append(("Refused", refused))
    sections.append(("How this sweep was made", _made(sweep)))
    name = str(sweep.run["name"])
    listed = [tag("li", tables.marked(sweep, reason)) for reason in reasons]
    header = tag(
        "header",
        tag("p", f"{name} \N{MIDDLE DOT} sweep", class_="eyebrow"),
        tag("h1", tables.marked(sweep, headline)),
        *([tag("ul", *listed, class_="reasons")] if listed else []),
        facts_list(_facts(sweep), "setting"),
    )
    return document(name, in_sections(header, sections), cards.payload)


def _facts(sweep: Sweep) -> dict[str, str]:
    points = sweep.run["points"]
    seeds = sorted({point["seed"] for point in points})
    return {
        "Points": f"{len(points):,}",
        "Seeds": ", ".join(map(str, seeds[:8])) + (" ..." if len(seeds) > 8 else ""),
        **{key: ", ".join(map(value_text, values)) for key, values in sweep.keys.items()},
    }


def _cards(cards: Cards, sweep: Sweep) -> Iterator[Markup]:
    """A figure a metric that moves; none where nothing was swept but seeds."""
    has_seeds = len({point["seed"] for point in sweep.run["points"]}) > 1
    found = [(name, drawn) for name in _FIGURES if (drawn := _figure(sweep, name)) is not None]
    for place, (name, drawn) in enumerate(found):
        definition = METRICS[name].definition
        said = f"{definition[0].upper()}{definition[1:]}." + _SPREAD * has_seeds
        # The last of an odd number takes its row alone.
        has_neighbour = place < len(found) - len(found) % 2
        yield cards.card(METRICS[name].label, said, {"": drawn}, spans_half=has_neighbour)


def _figure(sweep: Sweep, name: str) -> go.Figure | None:
    """A metric over the first key that takes several values; a line for each deployment and
    combination of the others.
    """
    along = next((key for key, values in sweep.keys.items() if len(values) > 1), None)
    if along is None or sweep.table[name].isna().all() or not sweep.table[name].any():
        return None
    values = sweep.keys[along]
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    scale, unit = _axis(sweep, name)
    drawn = style.figure(along, METRICS[name].label + (f" ({unit})" if unit else ""), 280)
    label, line = style.labels(sweep), style.lines(sweep)
    others = _others(sweep, along)
    for deployment in sweep.deployments:
        for number, other in enumerate(others):
            points = list(_points(sweep, deployment, name, along, other))
            if not points:
                continue
            x, *columns = (list(column) for column in zip(*points, strict=True))
            mean, low, high = ([value / scale for value in column] for column in columns)
            behind = f", {setting_text(other)}" if other else ""
            drawn.add_scatter(
                x=x if is_number else [value_text(value) for value in x],
                y=mean,
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [top - m for top, m in zip(high, mean, strict=True)],
                    "arrayminus": [m - bottom for bottom, m in zip(low, mean, strict=True)],
                    "thickness": 1.2,
                    "width": 3,
                },
                name=label[deployment] + behind,
                line=line[deployment] | {"dash": style.DASHES[number % len(style.DASHES)]},
                mode="lines+markers",
                hovertemplate=f"%{{y:,.4~g}} {unit} at %{{x}}<extra>{label[deployment]}"
                f"{behind}</extra>",
            )
    _scale_y(drawn, sweep, name)
    if is_number and len(values) <= _MOST_TICKS:
        drawn.update_xaxes(tickvals=values)
    return drawn


def _axis(sweep: Sweep, name: str) -> tuple[float, str]:
    """What a metric's values are divided by on an axis, and the unit that they have then."""
    described = METRICS[name]
    if _is_wide(sweep, name):
        return 1.0, "time"
    if described.unit == "s":
        return time_axis(float(sweep.table[name].max()))
    if described.unit == "ratio":
        return 0.01, "%"
    if described.unit == "currency":
        currencies = {str(style.facts(sweep, d).get("currency")) for d in sweep.deployments}
        return 1.0, " or ".join(sorted(currencies))
    return 1.0, {"x": TIMES}.get(described.unit, described.unit)


def _is_wide(sweep: Sweep, name: str) -> bool:
    """Whether a time spans so much that only a logarithmic axis shows all of it."""
    values = sweep.table[name].dropna()
    is_time = METRICS[name].unit == "s" and bool((values > 0).all())
    return is_time and float(values.max()) > _WIDE * float(values.min())


def _scale_y(drawn: go.Figure, sweep: Sweep, name: str) -> None:
    if not _is_wide(sweep, name):
        drawn.update_yaxes(rangemode="tozero", nticks=6)
        return
    low, high = float(sweep.table[name].min()) / 1.3, float(sweep.table[name].max()) * 1.3
    edges = [math.log10(low), math.log10(high)]
    drawn.update_yaxes(type="log", range=edges, **time_ticks(low, high))


def _others(sweep: Sweep, along: str) -> list[dict[str, Any]]:
    """Combinations of the keys besides ``along``."""
    found: list[dict[str, Any]] = []
    for setting in sweep.settings:
        other = {key: value for key, value in setting.items() if key != along}
        if other not in found:
            found.append(other)
    return found


def _points(
    sweep: Sweep, deployment: str, name: str, along: str, other: Mapping[str, Any]
) -> Iterator[tuple[Any, float, float, float]]:
    """Where a line goes: the value swept, and mean, lowest and highest over seeds."""
    for value in sweep.keys[along]:
        rows = sweep.rows_at({along: value, **other})
        own = rows[rows["deployment"] == deployment][name].dropna()
        if len(own):
            yield value, float(own.mean()), float(own.min()), float(own.max())


def _table(sweep: Sweep) -> Markup:
    shown = (*KEY_METRICS, *(["num_lost"] if sweep.table["num_lost"].any() else []))
    head = ["Setting", "Deployment", *(METRICS[name].label for name in shown)]
    rows = []
    for setting in sweep.settings:
        at = sweep.rows_at(setting)
        for place, deployment in enumerate(dict.fromkeys(at["deployment"])):
            own = at[at["deployment"] == deployment]
            said = setting_text(setting) or "as written"
            rows.append(
                tag(
                    "tr",
                    tag("th", "" if place else said, scope="row"),
                    tag("th", tables.name_with_mark(sweep, str(deployment)), scope="row"),
                    *(_cell(sweep, own, str(deployment), name) for name in shown),
                )
            )
    return tables.table(head, rows, "metrics", "All settings")


def _cell(sweep: Sweep, rows: pd.DataFrame, deployment: str, name: str) -> Markup:
    mean, spread, count = measure_spread(rows, name)
    currency = str(style.facts(sweep, deployment).get("currency") or "")
    if not count:
        return tag("td", UNDEFINED)
    shown = [f"{metric(name, mean, currency)} {heading_unit(name)}".rstrip()]
    behind = (
        [tag("span", f"± {metric(name, spread, currency)}", class_="hint")]
        if math.isfinite(spread)
        else []
    )
    return tag("td", *shown, *behind, data_metric=name, data_value=repr(mean))


def _refused(sweep: Sweep) -> Markup | None:
    refused = [point for point in sweep.run["points"] if "refusal" in point]
    if not refused:
        return None
    return tag("ul", *(tag("li", f"{p['point']}: {p['refusal']}") for p in refused))


def _made(sweep: Sweep) -> Markup:
    run = sweep.run
    facts = {"Command": run.get("command"), "Fidelity": run.get("fidelity"), **tables.made_of(run)}
    links = [
        tag("li", tag("a", point["point"], href=f"points/{point['point']}/report.html"))
        for point in run["points"]
        if "refusal" not in point
    ]
    listed = tag("details", tag("summary", "The pages of all points"), tag("ul", *links))
    return join([facts_list(facts), listed])
