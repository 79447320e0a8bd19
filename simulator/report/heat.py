"""Heat maps of load, and the imbalance that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.report import style
from simulator.report.style import Shown
from simulator.results.formats import TIMES
from simulator.results.shown_steps import shown_step

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
    bar: dict[str, Any] = {
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


def draw_imbalance(shown: Shown, step: str, ratios: Mapping[str, pd.Series]) -> go.Figure:
    """Curves of deployments over layers with their skew.

    Args:
        step: phase or kind of the step that is shown.
        ratios: pairs of the busiest rank over the mean rank's, by deployment and layer.
    """
    label, line = style.labels(shown), style.lines(shown)
    drawn = style.figure("MoE layer (index)", "Busiest over mean rank (ratio)", height=240)
    for name, ratio in ratios.items():
        uniform = shown_step(shown.run, name, step)["uniform_imbalance"]
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
