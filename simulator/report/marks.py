"""Marks of several figures: curves, spreads, names, stacked bars, spans of steps, maps of load."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from simulator.base.findings import Finding
from simulator.base.formats import TIMES, log_ticks, seconds, time_axis
from simulator.report import style
from simulator.results.folder import Results
from simulator.results.results_folder import ResultsFolder
from simulator.results.sampled_steps import sampled_step, step_text
from simulator.results.verdict import short_names

DOTTED = {"color": style.MUTED, "width": 1, "dash": "dot"}
"""A line that only helps the eye."""
_STRIP = "rgba(128,139,153,0.16)"


def log_axis(
    low: float, high: float, ticks: Callable[[float, float], Mapping[str, object]] = log_ticks
) -> dict[str, object]:
    """A logarithmic axis from ``low`` to ``high``."""
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        **ticks(low, high),
    }


def whiskers(
    value: ArrayLike, low: ArrayLike, high: ArrayLike, **look: object
) -> dict[str, object]:
    """Error bars from ``low`` to ``high``; none to a side on which an end does not lie."""
    up, down = (
        np.maximum(np.atleast_1d(np.subtract(*ends)), 0.0).tolist()
        for ends in ((high, value), (value, low))
    )
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **look}


def add_name(drawn: go.Figure, y: float, name: str, length: int = 44) -> None:
    """A deployment's name above its bar, so that long names leave the plot its width."""
    text = style.short(name, length)
    drawn.add_annotation(x=0, y=y, xanchor="left", yanchor="bottom", text=text)


def add_curve(
    drawn: go.Figure,
    shown: ResultsFolder,
    name: str,
    hover: str,
    *,
    is_beside: bool = False,
    line: Mapping[str, object] | None = None,
    **trace: object,
) -> None:
    """Add a curve of a deployment in its look.

    Args:
        hover: Plotly's template.
        is_beside: whether it is thin, beside another curve of the deployment that has its entry in
            the legend.
        line: what its line has besides.
        trace: its points, and what the trace has besides.
    """
    beside = {"opacity": 0.65, "showlegend": False} if is_beside else {}
    width = {"width": 0.7 if is_beside else 1.6}
    drawn.add_scatter(
        name=style.labels(shown)[name],
        line=style.lines(shown)[name] | width | dict(line or {}),
        hovertemplate=hover,
        **{"mode": "lines"} | beside | trace,
    )


def add_moves(
    drawn: go.Figure,
    shown: ResultsFolder,
    moves: Mapping[str, Sequence[tuple[float, str]]],
    levels: tuple[float, float],
) -> None:
    """Draw a dotted line across a plot for each move of a deployment's experts.

    Args:
        moves: by deployment, places on the horizontal axis, and what to tell of each.
        levels: where lines begin and end on the vertical axis.
    """
    for name, own in moves.items():
        if own:
            add_curve(
                drawn,
                shown,
                name,
                "%{customdata}",
                line={"width": 0.8, "dash": "dot"},
                x=[at for place, _ in own for at in (place, place, None)],
                y=[level for _ in own for level in (*levels, None)],
                customdata=[text for _, told in own for text in 3 * [told]],
                opacity=0.6,
                showlegend=False,
            )


def add_agreement(drawn: go.Figure, low: float, high: float, bands: Sequence[float]) -> None:
    """The line on which predictions agree with measurements, and strips of shares off it: on
    logarithmic axes an error either way is a straight strip.
    """
    hidden = {"hoverinfo": "skip", "showlegend": False}
    for band in bands:
        y = [low * (1 - band), high * (1 - band), high * (1 + band), low * (1 + band)]
        drawn.add_scatter(
            x=[low, high, high, low], y=y, fill="toself", fillcolor=_STRIP, mode="none", **hidden
        )
    drawn.add_scatter(x=[low, high], y=[low, high], mode="lines", line=DOTTED, **hidden)


BAR_PIXELS = 54


def draw_stacked(
    results: ResultsFolder,
    lengths: pd.DataFrame,
    colours: Mapping[str, str],
    x: str,
    write: Callable[[float], str],
    unit: float = 1.0,
) -> go.Figure:
    """One bar a deployment.

    Args:
        lengths: parts of each deployment's bar, from top to bottom: a column a part.
        x: title of the horizontal axis.
        write: text of a length, for labels and hovers.
        unit: length of a unit of the axis.
    """
    names = [str(name) for name in lengths.index]
    height = 56 + BAR_PIXELS * len(names)
    drawn = style.figure(x, "", height, barmode="stack", bargap=0.56, margin_l=12)
    # Labels that do not fit their part are left to the hover, not shrunk.
    drawn.update_layout(uniformtext={"minsize": 11, "mode": "hide"})
    label = style.labels(results)
    for part in lengths.columns[lengths.any()]:
        texts = [write(length) for length in lengths[part]]
        drawn.add_bar(
            orientation="h",
            y=list(range(len(names))),
            x=(lengths[part] / unit).to_list(),
            name=part,
            marker={"color": colours[part], "line": {"width": 0}},
            text=texts,
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            customdata=[[label[name], text] for name, text in zip(names, texts, strict=True)],
            hovertemplate=f"{part} %{{customdata[1]}}<extra>%{{customdata[0]}}</extra>",
        )
    for i, name in enumerate(names):
        add_name(drawn, i - 0.24, label[name])
    total = float(lengths.sum(axis=1).max()) / unit or 1.0
    drawn.update_yaxes(visible=False, range=[len(names) - 0.7, -0.75])
    drawn.update_xaxes(rangemode="tozero", range=[0, 1.01 * total], nticks=8)
    return drawn


WHICH = (
    "Headings say which step of the run it is, or that it is representative: as many tokens as a "
    "step of the run, spread evenly over the ranks."
)
"""Caption of the headings of figures of single steps."""


def find_values(
    results: ResultsFolder, kind: str, values: Mapping[str, float] | pd.Series
) -> Finding | None:
    """Find what a figure shows, of the deployments that have a number; ``None`` where none has."""
    short, names = short_names(results), [name for name in results.deployments if name in values]
    # Rounded, since what is nothing but for its rounding may be below it.
    known = {short[one]: round(values[one], 9) + 0.0 for one in names if math.isfinite(values[one])}
    return Finding(kind, values=known) if known else None


def find_metric(results: Results, kind: str, key: str) -> Finding | None:
    """Find what a figure shows by a metric of the deployments."""
    return find_values(results, kind, results.summary.set_index("deployment")[key])


def heading(results: Results, name: str, phase: str) -> str:
    """The heading of a deployment's plot."""
    return f"{style.labels(results)[name]}: {step_text(results, name, phase)}"


def shared_heading(results: Results, names: list[str], phase: str) -> str:
    """The heading of a plot with the steps of several deployments."""
    if len(names) == 1:
        said = step_text(results, names[0], phase)
    else:
        sources = {sampled_step(results, name, phase)["source"] for name in names}
        steps = {
            frozenset({"run"}): f"{phase} steps of the run",
            frozenset({"representative"}): f"representative {phase} steps",
        }
        said = steps.get(frozenset(sources), f"{phase} steps, of the run and representative")
    return f"{said[0].upper()}{said[1:]}"


MAX_RANKS = 16
MAX_BARS = 400


def cut_to_layers(spans: pd.DataFrame, max_bars: int = MAX_BARS) -> tuple[pd.DataFrame, str]:
    """Cut spans to the first layers that fit in ``max_bars``, on at most ``MAX_RANKS`` ranks, and
    say so in words.
    """
    ranks = np.sort(spans["rank"].unique())
    on_ranks = spans[spans["rank"].isin(ranks[:MAX_RANKS])]
    extent = f"{min(len(ranks), MAX_RANKS)} of {len(ranks)} ranks"
    in_layers = on_ranks[on_ranks["layer"] >= 0]
    if in_layers.empty:
        return on_ranks, extent
    bars_up_to = in_layers.groupby("layer").size().cumsum()
    num_layers = max(int((bars_up_to <= max_bars).sum()), 1)
    shown = in_layers[in_layers["layer"].isin(bars_up_to.index[:num_layers])]
    # Spans of no layer, such as the engine's own time, are shown where they fall in the window.
    end_s = float((shown["start_s"] + shown["duration_s"]).max())
    whole = on_ranks[(on_ranks["layer"] < 0) & (on_ranks["start_s"] < end_s)]
    shown = pd.concat([shown, whole]) if len(whole) else shown
    return shown, f"first {num_layers} of {len(bars_up_to)} layers, {extent}"


def draw_axes(
    spans: pd.DataFrame, height: int, nticks: int, **layout: Any
) -> tuple[go.Figure, float]:
    """An empty timeline that holds spans, and the seconds of a unit of its axis.

    Time before the first layer (the engine's own) is the same on all ranks: it is cut rather than
    let it fill the plot.
    """
    end_s = float((spans["start_s"] + spans["duration_s"]).max())
    first_s = float(spans.loc[spans["layer"] >= 0, "start_s"].min())
    begin_s = max(0.0, first_s - 0.08 * (end_s - first_s)) if math.isfinite(first_s) else 0.0
    unit_s, unit = time_axis(end_s)
    title = f"Time since the start of the step ({unit})"
    drawn = style.figure(title, "Rank (index)", height, barmode="overlay", **layout)
    drawn.update_yaxes(showgrid=False)
    drawn.update_xaxes(range=[begin_s / unit_s, end_s / unit_s], nticks=nticks)
    return drawn, unit_s


def add_bars(
    drawn: go.Figure,
    spans: pd.DataFrame,
    row: str,
    extra: str,
    unit_s: float,
    *,
    colours: Mapping[str, str] = style.PHASE_COLOURS,
    part: str = "layer",
    **look: object,
) -> None:
    """Add a bar a span, a trace a phase.

    Args:
        row: column with the bar's place on the vertical axis.
        extra: what the hover says beside the bar.
        unit_s: seconds of a unit of the horizontal axis.
        colours: of the phases, in their order.
        part: what the spans' layers are.
        look: what the bars have besides.
    """
    by_phase = spans.groupby("name")
    for phase in filter(by_phase.groups.__contains__, colours):
        own = by_phase.get_group(phase)
        where = ["whole step" if i < 0 else f"{part} {i}" for i in own["layer"]]
        took, start = (map(seconds, own[column]) for column in ("duration_s", "start_s"))
        drawn.add_bar(
            orientation="h",
            y=own[row].to_numpy(),
            base=(own["start_s"] / unit_s).to_numpy(float),
            x=(own["duration_s"] / unit_s).to_numpy(float),
            name=phase,
            customdata=list(zip(where, took, start, strict=True)),
            hovertemplate=(
                f"{phase}, %{{customdata[0]}}: %{{customdata[1]}} from "
                f"%{{customdata[2]}}<extra>{extra}</extra>"
            ),
            **{"marker": {"line": {"width": 0}}, **look},
            marker_color=colours[phase],
        )


MAX_FACTOR = 8.0
"""Loads beyond this factor of the mean take the last colour: one scale for all heat maps makes them
comparable."""


def grid(table: pd.DataFrame, row: str, column: str, value: str) -> NDArray[np.float64]:
    """The table as a dense array; NaN where it has no row.

    >>> table = pd.DataFrame({"layer": [0, 1], "rank": [0, 1], "load": [1.0, 2.0]})
    >>> grid(table, "layer", "rank", "load")
    array([[ 1., nan],
           [nan,  2.]])
    """
    filled = np.full((int(table[row].max()) + 1, int(table[column].max()) + 1), np.nan)
    filled[table[row].to_numpy(int), table[column].to_numpy(int)] = table[value].to_numpy(float)
    return filled


def load_map(load: NDArray[np.float64], column: str, hover: str, height: int = 300) -> go.Figure:
    """Load over the layer's mean, a row a layer, on a logarithmic scale that is the same in every
    heat map.

    A cell carries its load with the digits that are shown; the page's script makes its colour of
    that, so that large maps are carried once.

    Args:
        column: what a column is, such as ``Expert``.
        hover: what is counted, such as ``tokens``.
    """
    drawn = style.figure(f"{column} (index)", "MoE layer (index)", height)
    powers = [-3, -2, -1, 0, 1, 2, 3]
    bar = {
        "tickvals": powers,
        "ticktext": [f"{factor}{TIMES}" for factor in ("≤ ⅛", "¼", "½", "1", "2", "4", "≥ 8")],
    }
    drawn.add_heatmap(
        customdata=[[_format_value(value) for value in row] for row in load.tolist()],
        meta={"colour_limit": MAX_FACTOR},
        zmin=powers[0],
        zmax=powers[-1],
        colorscale=style.LOAD_COLOURS,
        colorbar=bar,
        hovertemplate=(
            f"layer %{{y}}, {column.lower()} %{{x}}<br>%{{customdata:.2f}}{TIMES} the "
            f"mean {hover}<extra></extra>"
        ),
    )
    integer_axes(drawn, *load.shape)
    return drawn


def _format_value(load: float) -> float | None:
    return round(load, 2) if math.isfinite(load) else None


def integer_axes(drawn: go.Figure, rows: int, columns: int, **where: int) -> None:
    """Whole numbers on both axes, the first row on top."""
    drawn.update_yaxes(autorange="reversed", showgrid=False, dtick=_tick(rows), **where)
    drawn.update_xaxes(showgrid=False, dtick=_tick(columns), **where)


def _tick(size: int) -> int:
    """The tick step that puts at most nine ticks on an axis: a power of two, as experts and ranks
    are counted.
    """
    step = 1
    while size > 9 * step:
        step *= 2
    return step


SKEW = (
    "The dotted line is what uniform routing gives by chance at as many tokens; the shade from "
    "it up to the mean of the layers is the skew of the routing."
)
"""Caption of the line and the shade of :func:`add_imbalance`."""
_SHADE = 0.22
_HALF_WIDTH = 0.3
"""Half the width of the mark of a single layer, in layers."""


def draw_imbalance(shown: ResultsFolder, step: str, ratios: Mapping[str, pd.Series]) -> go.Figure:
    """Curves of deployments over layers with their skew.

    Args:
        step: phase or kind of the step that is shown.
        ratios: pairs of the busiest rank over the mean rank's, by deployment and layer.
    """
    label, line = style.labels(shown), style.lines(shown)
    drawn = style.figure("MoE layer (index)", "Busiest over mean rank (ratio)", height=240)
    for name, ratio in ratios.items():
        uniform = sampled_step(shown, name, step)["uniform_imbalance"]
        add_imbalance(drawn, ratio, uniform, label[name], line[name])
    drawn.update_yaxes(rangemode="tozero", nticks=6)
    return drawn.update_xaxes(nticks=9)


def add_imbalance(
    drawn: go.Figure, ratio: pd.Series, uniform: dict[str, float], label: str, line: dict[str, Any]
) -> None:
    """Add a deployment's curve, the line that chance alone gives, and a shade for its skew.

    Args:
        ratio: pairs of the busiest rank over the mean rank's, by layer.
        uniform: fields of :class:`~simulator.work.uniform_load.UniformImbalance`.
        label: name of the deployment.
        line: look of the deployment's curves.
    """
    layers, values = ratio.index.to_numpy(float), ratio.to_numpy(np.float64)
    names = [f"layer {layer}" for layer in ratio.index]
    if len(ratio) == 1:
        layers = np.array([layers[0] - _HALF_WIDTH, layers[0] + _HALF_WIDTH])
        values, names = np.repeat(values, 2), names * 2
    chance = np.full(len(layers), uniform["mean"])
    # Of the mean, since single layers scatter to both sides of what chance gives on average.
    skewed = np.fmax(np.full(len(layers), np.nanmean(values)), chance)
    hidden = {"name": label, "showlegend": False, "mode": "lines"}
    drawn.add_scatter(
        x=np.concatenate([layers, layers[::-1]]),
        y=np.concatenate([chance, skewed]),
        line={"width": 0, "color": line["color"]},
        fill="toself",
        fillcolor=style.fade_colour(line["color"], _SHADE),
        hoverinfo="skip",
        **hidden,
    )
    drawn.add_scatter(
        x=layers,
        y=chance,
        line=line | {"dash": "dot", "width": 1.5},
        hovertemplate=(
            f"uniform routing: %{{y:.2f}}{TIMES}, in nine of ten batches "
            f"{uniform['low']:.2f} to {uniform['high']:.2f}<extra>{label}</extra>"
        ),
        **hidden,
    )
    drawn.add_scatter(
        x=layers,
        y=values,
        name=label,
        line=line,
        mode="lines",
        customdata=[
            [name, _excess(value - uniform["mean"])]
            for name, value in zip(names, values.tolist(), strict=True)
        ],
        hovertemplate=(
            f"%{{customdata[0]}}: %{{y:.2f}}{TIMES}, %{{customdata[1]}}<extra>{label}</extra>"
        ),
    )


def _excess(skew: float) -> str:
    """Distance of a layer from what chance gives, in words."""
    side = "above" if skew >= 0 else "below"
    return f"{abs(skew):.2f} {side} uniform routing"
