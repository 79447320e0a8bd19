"""Heat maps over layers, experts and ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.report import style
from simulator.results.formats import TIMES

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
