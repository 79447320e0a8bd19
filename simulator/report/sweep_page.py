"""The page of a sweep: how figures move with what was swept, a line a deployment, with their spread
over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.base.formats import TIMES, UNDEFINED, chance_text, time_axis, time_ticks
from simulator.report import style
from simulator.report.deployment_tables import describe_making
from simulator.report.gallery import FigureCards, pair_up
from simulator.report.marks import log_axis, whiskers
from simulator.report.rendering import Block, Section, render_blocks, show_tables
from simulator.results.availability import list_told
from simulator.results.metrics import KEY_METRICS, METRICS, heading_unit, metric
from simulator.results.results_folder import Cell, TextTable
from simulator.results.run_bands_text import is_sure
from simulator.results.sweep import (
    NO_WINNER,
    Sweep,
    chance_at,
    measure_spread,
    name_keys,
    setting_text,
    value_text,
    winners_at,
)

_FIGURES = (
    *KEY_METRICS,
    "e2e_p50_s",
    "output_tokens_per_s",
    "load_imbalance",
)
_SPREAD = " Whiskers reach from the lowest to the highest seed."
_SETTINGS = (
    "Mean over seeds, and behind it the standard deviation of single seeds. Each point is a run of "
    "its own, whose page lies in the folder points."
)
_WINNERS = (
    "The deployment that serves each setting better, or does with most seeds: the fainter, the "
    "fewer these are and the lower the probability that it is better. Where neither is better, or "
    "a setting is refused, nothing is filled."
)
_WIDE = 20.0
"""Longest over shortest time from which on an axis is logarithmic."""
_MOST_TICKS = 8


def render(sweep: Sweep) -> str:
    """The page as one HTML document."""
    cards, run = FigureCards(), sweep.run
    metrics = [*KEY_METRICS, *list_told(sweep.table)]
    points = run["points"]
    seeds = [str(seed) for seed in sorted({point["seed"] for point in points})]
    setting = {
        "Points": f"{len(points):,}",
        "Seeds": ", ".join(seeds[:8]) + (" ..." if len(seeds) > 8 else ""),
        **{key: ", ".join(map(value_text, values)) for key, values in sweep.keys.items()},
    }
    making = {"Command": run.get("command"), "Fidelity": run.get("fidelity")} | describe_making(run)
    pages = [
        (f"points/{point['point']}/report.html", point["point"])
        for point in points
        if "refusal" not in point
    ]
    refused = [f"{one['point']}: {one['refusal']}" for one in points if "refusal" in one]
    winners = [cards.card(title, _WINNERS, {"": drawn}) for title, drawn in draw_winners(sweep)]
    moves = pair_up(cards, list(_draw_metrics(sweep)))
    sections = [
        *([Section("Who is better", [Block(cards=winners)])] if winners else []),
        Section("What moves", [Block(cards=moves)] if moves else []),
        *show_tables([_list_settings(sweep, metrics)]),
        Section("Refused", [Block(sentences=refused, look="")] if refused else []),
        Section(
            "How this sweep was made",
            [Block(facts=making), Block(links=pages, title="The pages of all points")],
        ),
    ]
    name = str(run["name"])
    return render_blocks(
        name,
        cards,
        sweep.verdict,
        sections,
        eyebrow=f"{name} · sweep",
        setting=setting,
        shown=sweep,
    )


def draw_winners(sweep: Sweep) -> Iterator[tuple[str, go.Figure]]:
    """Title and map of who is better over the first two keys that take several values, one for each
    combination of the others; none where nobody is better, or one is everywhere for sure, as the
    headline says.
    """
    along = [key for key, values in sweep.keys.items() if len(values) > 1][:2]
    counted = [(setting, winners_at(sweep, setting)) for setting in sweep.settings]
    is_one = len({name for _, found in counted for name in found}) < 2
    if not along or (is_one and all(is_sure(one.get("chance")) for one in sweep.run["points"])):
        return
    maps: dict[str, list[tuple[dict[str, object], dict[str, int]]]] = {}
    for setting, found in counted:
        other = {key: value for key, value in setting.items() if key not in along}
        maps.setdefault(setting_text(other), []).append((setting, found))
    named, label, colour = name_keys(sweep.keys), style.labels(sweep), style.colours(sweep)
    values = [[value_text(value) for value in sweep.keys[key]] for key in along] + [[""]]
    for said, settings in maps.items():
        x, y, *_ = [named[key] for key in along] + [""]
        drawn = style.figure(x, y, 110 + 44 * len(values[1]))
        for name in (*sweep.deployments, NO_WINNER):
            own = [
                one for one in settings if one[1] and max(one[1], key=one[1].__getitem__) == name
            ]
            if not own:
                continue
            places = [[value_text(setting[key]) for key in along] + [""] for setting, _ in own]
            shares = [found[name] / sum(found.values()) for _, found in own]
            chances = [chance_at(sweep, setting, name) for setting, _ in own]
            drawn.add_scatter(
                x=[place[0] for place in places],
                y=[place[1] for place in places],
                mode="markers",
                line={"color": colour.get(name, style.MUTED)},
                marker={
                    "symbol": "square-open" if name == NO_WINNER else "square",
                    "size": 30,
                    "color": colour.get(name, style.MUTED),
                    "opacity": [
                        0.3 + 0.7 * share * _beyond_chance(chance)
                        for share, chance in zip(shares, chances, strict=True)
                    ],
                },
                customdata=[
                    f"{share:.0%} of seeds"
                    + ("" if chance is None else f", with a probability of {chance_text(chance)}")
                    for share, chance in zip(shares, chances, strict=True)
                ],
                name=label.get(name, "neither"),
                hovertemplate="%{x} %{y}: with %{customdata}",
            )
        for update, shown in zip((drawn.update_xaxes, drawn.update_yaxes), values, strict=False):
            update(type="category", categoryorder="array", categoryarray=shown)
        by = " and ".join(named[key] for key in along)
        yield f"By {by}{f', {said}' if said else ''}", drawn


def _beyond_chance(chance: float | None) -> float:
    """Scale a probability from even odds (0) to certainty (1); 1 where none was drawn."""
    return 1.0 if chance is None else max(0.0, 2 * chance - 1)


def _draw_metrics(sweep: Sweep) -> Iterator[tuple[str, str, go.Figure]]:
    """Title, caption and figure of each metric that moves; none where only seeds were swept."""
    has_seeds = len({point["seed"] for point in sweep.run["points"]}) > 1
    for name in (*_FIGURES, *list_told(sweep.table)):
        if (drawn := _figure(sweep, name)) is not None:
            definition = METRICS[name].definition
            caption = f"{definition[0].upper()}{definition[1:]}." + _SPREAD * has_seeds
            yield METRICS[name].label, caption, drawn


def _figure(sweep: Sweep, name: str) -> go.Figure | None:
    """A metric over the first key that takes several values; a line for each deployment and
    combination of the others.
    """
    along = next((key for key, values in sweep.keys.items() if len(values) > 1), None)
    is_there = name in sweep.table and not sweep.table[name].isna().all()
    if along is None or not is_there or not sweep.table[name].any():
        return None
    values = sweep.keys[along]
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    scale, unit = _axis(sweep, name)
    drawn = style.figure(
        name_keys(sweep.keys)[along], METRICS[name].label + (f" ({unit})" if unit else ""), 280
    )
    label, line = style.labels(sweep), style.lines(sweep)
    others = _others(sweep, along)
    for deployment in sweep.deployments:
        for number, other in enumerate(others):
            points = list(_points(sweep, deployment, name, along, other))
            if not points:
                continue
            x, *columns = (list(column) for column in zip(*points, strict=True))
            mean, low, high = (np.divide(column, scale) for column in columns)
            said = label[deployment] + (f", {setting_text(other)}" if other else "")
            drawn.add_scatter(
                x=x if is_number else [value_text(value) for value in x],
                y=mean,
                error_y=whiskers(mean, low, high, thickness=1.2, width=3),
                name=said,
                line=line[deployment] | {"dash": style.DASHES[number % len(style.DASHES)]},
                mode="lines+markers",
                hovertemplate=f"%{{y:,.4~g}} {unit} at %{{x}}<extra>{said}</extra>",
            )
    _scale_y(drawn, sweep, name)
    if is_number and len(values) <= _MOST_TICKS:
        drawn.update_xaxes(tickvals=values)
    return drawn


def _axis(sweep: Sweep, name: str) -> tuple[float, str]:
    """Divisor of a metric's values on an axis, and their unit then."""
    described = METRICS[name]
    if _is_wide(sweep, name):
        return 1.0, ""  # each tick has its own
    if described.unit == "s":
        return time_axis(float(sweep.table[name].max()))
    if described.unit == "ratio":
        return 0.01, "%"
    if described.unit == "currency":
        currencies = {str(sweep.facts(d).get("currency")) for d in sweep.deployments}
        return 1.0, " or ".join(sorted(currencies))
    return 1.0, {"x": TIMES}.get(described.unit, described.unit)


def _is_wide(sweep: Sweep, name: str) -> bool:
    """Whether a time spans so much that only a logarithmic axis shows all of it."""
    values = sweep.table[name].dropna()
    is_time = METRICS[name].unit == "s" and bool((values > 0).all())
    return is_time and float(values.max()) > _WIDE * float(values.min())


def _scale_y(drawn: go.Figure, sweep: Sweep, name: str) -> None:
    if _is_wide(sweep, name):
        values = sweep.table[name]
        drawn.update_yaxes(log_axis(values.min() / 1.3, values.max() * 1.3, time_ticks))
    else:
        drawn.update_yaxes(rangemode="tozero", nticks=6)


def _others(sweep: Sweep, along: str) -> list[dict[str, object]]:
    """Combinations of the keys besides ``along``."""
    found: list[dict[str, object]] = []
    for setting in sweep.settings:
        other = {key: value for key, value in setting.items() if key != along}
        found += [] if other in found else [other]
    return found


def _points(
    sweep: Sweep, deployment: str, name: str, along: str, other: Mapping[str, object]
) -> Iterator[tuple[object, float, float, float]]:
    """Points of a line: the value swept, and mean, lowest and highest over seeds."""
    for value in sweep.keys[along]:
        rows = sweep.rows_at({along: value, **other})
        own = rows[rows["deployment"] == deployment][name].dropna()
        if len(own):
            yield value, float(own.mean()), float(own.min()), float(own.max())


def _list_settings(sweep: Sweep, metrics: Sequence[str]) -> TextTable:
    """Rows of all settings: the setting at its first deployment, and a mean a metric."""
    titles = (METRICS[name].label for name in metrics)
    rows: list[list[str | Cell]] = [["Setting", "Deployment", *titles]]
    for setting in sweep.settings:
        said = setting_text(setting) or "as written"
        for deployment, own in sweep.rows_at(setting).groupby("deployment", sort=False):
            name = str(deployment)
            currency = str(sweep.facts(name).get("currency") or "")
            rows.append([said, name, *(_average(own, one, currency) for one in metrics)])
            said = ""
    return TextTable("All settings", rows, _SETTINGS)


def _average(rows: pd.DataFrame, name: str, currency: str) -> str | Cell:
    """A metric over the seeds that have a value, and the standard deviation of single seeds."""
    mean, spread, num_seeds = measure_spread(rows, name)
    if not num_seeds:
        return UNDEFINED
    shown = f"{metric(name, mean, currency)} {heading_unit(name)}".rstrip()
    behind = f"± {metric(name, spread, currency)}" if math.isfinite(spread) else ""
    return Cell(shown, behind, name, mean)
