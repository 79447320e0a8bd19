"""Stacked bars, one a deployment, with the name above each bar so that long names leave the plot
its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from simulator.report import style
from simulator.results.folder import Results

BAR_PIXELS = 54


def stacked(
    results: Results,
    names: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    x: str,
    texts: Mapping[str, Sequence[str]],
) -> go.Figure:
    """One bar a deployment, made of ``parts``.

    Args:
        names: deployments, from top to bottom.
        parts: length of each part, by its name, in the order of ``names``.
        x: title of the horizontal axis.
        texts: what each part's label and hover say.
    """
    drawn = style.figure(
        x, "", height=56 + BAR_PIXELS * len(names), barmode="stack", bargap=0.56, margin_l=12
    )
    # Labels that do not fit their part are left to the hover, not shrunk.
    drawn.update_layout(uniformtext={"minsize": 11, "mode": "hide"})
    total = max(sum(part[i] for part in parts.values()) for i in range(len(names))) or 1.0
    label = style.labels(results)
    for part, lengths in parts.items():
        if not any(lengths):
            continue
        drawn.add_bar(
            orientation="h",
            y=list(range(len(names))),
            x=list(lengths),
            name=part,
            marker={"color": colours[part], "line": {"width": 0}},
            text=list(texts[part]),
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            customdata=[[label[name], text] for name, text in zip(names, texts[part], strict=True)],
            hovertemplate=f"{part} %{{customdata[1]}}<extra>%{{customdata[0]}}</extra>",
        )
    for i, name in enumerate(names):
        drawn.add_annotation(
            x=0, y=i - 0.24, xanchor="left", yanchor="bottom", text=style.short(label[name])
        )
    drawn.update_yaxes(visible=False, range=[len(names) - 0.7, -0.75])
    drawn.update_xaxes(rangemode="tozero", range=[0, 1.01 * total], nticks=8)
    return drawn
