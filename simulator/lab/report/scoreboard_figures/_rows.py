"""The rows of a scoreboard as its figures need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.report import style
from simulator.results.scores import Scoreboard, is_answered, title_of

STATUS_COLOURS = {"ok": "#228833", "extrapolated": "#EE7733", "unsupported": "#A5ACB5"}
STATUS_NAMES = {
    "ok": "inside the measured domain",
    "extrapolated": "extrapolated",
    "unsupported": "not answered",
}


def parts(board: Scoreboard) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each suite's quantity by its title, with its rows."""
    for (suite, quantity), own in board.rows.groupby(["suite", "quantity"], sort=False):
        yield title_of(str(suite), str(quantity)), own


def select_answered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a prediction, which have an error."""
    return rows[is_answered(rows["status"]) & (rows["predicted"] > 0) & (rows["measured"] > 0)]


def ratios(board: Scoreboard) -> dict[str, NDArray[np.float64]]:
    """Predictions over measurements of each suite's quantity that has some."""
    found = {title: select_answered(rows) for title, rows in parts(board)}
    return {
        title: (rows["predicted"] / rows["measured"]).to_numpy(float)
        for title, rows in found.items()
        if len(rows)
    }


def share_figure(num_bars: int, **layout: Any) -> go.Figure:
    """An empty figure of bars whose lengths are shares of rows."""
    return style.figure(
        "Share of rows",
        "",
        90 + 28 * num_bars,
        xaxis={"range": [0, 1.04], "tickformat": ".0%", "dtick": 0.25},
        yaxis={"autorange": "reversed"},
        **layout,
    )


def lines(board: Scoreboard) -> dict[str, dict[str, object]]:
    """The line of each suite's quantity: its colour, and a dash beyond the eighth."""
    return {title: style.line_at(i) for i, (title, _) in enumerate(parts(board))}


def status_of(rows: pd.DataFrame) -> pd.Series:
    """``ok``, ``extrapolated`` or ``unsupported``."""
    return rows["status"].str.split(":", n=1).str[0].where(rows["predicted"].notna(), "unsupported")
