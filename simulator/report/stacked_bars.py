"""Stacked bars, one a deployment, with the name above each bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.marks import add_name

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
