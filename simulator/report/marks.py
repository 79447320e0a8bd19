"""Marks of several figures: spreads, names, agreement with measurements, stacked bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
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


def add_curve(
    drawn: go.Figure,
    shown: style.Shown,
    name: str,
    hover: str,
    *,
    is_beside: bool = False,
    line: Mapping[str, Any] | None = None,
    **trace: Any,
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
    shown: style.Shown,
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
    results: style.Shown,
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
