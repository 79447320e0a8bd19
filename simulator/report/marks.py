"""Marks of several figures: spreads, names above bars, agreement with measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from simulator.report import style
from simulator.results.formats import log_ticks

DOTTED = {"color": style.MUTED, "width": 1, "dash": "dot"}
"""A line that only helps the eye."""
_STRIP = "rgba(128,139,153,0.16)"


def log_axis(
    low: float, high: float, ticks: Callable[[float, float], dict[str, Any]] = log_ticks
) -> dict[str, Any]:
    """A logarithmic axis from ``low`` to ``high``."""
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        **ticks(low, high),
    }


def whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike, **look: Any) -> dict[str, Any]:
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
