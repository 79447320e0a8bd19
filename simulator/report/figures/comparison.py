"""The numbers people compare first, one small plot each."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results import metrics
from simulator.results.folder import Results
from simulator.results.metrics import METRICS
from simulator.results.run_bands_text import band_text, edges_of

BAR_PIXELS = 26
_LINE = {"color": "#2B3544", "width": 1.5}
_LEAST = 0.02
"""Bands that are narrower than this share of the longest bar are not drawn."""
_ARROWS = {"lower": " ↓", "higher": " ↑"}


class Comparison(Figure[Results]):
    """A bar a deployment, a plot a metric; metrics that no deployment defines are left out."""

    title = "The deployments side by side"
    section = "Comparison"
    definition = (
        "Each plot has its own scale from zero; an arrow says which way is better, a line, if any, "
        "holds 80 % of what the figure may be, and a dash says that it is undefined."
    )
    absent = "No request finished."
    order = 10
    width = "quarter"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        values = results.summary.reindex(columns=list(metrics.KEY_METRICS)).astype(float)
        return {
            _heading(results, name): _bars(results, name, values[name].tolist())
            for name in metrics.KEY_METRICS
            if values[name].notna().any()
        }


def _heading(results: Results, name: str) -> str:
    unit = f" ({metrics.heading_unit(name)})" if metrics.heading_unit(name) else ""
    way = metrics.better_way(name, is_open=results.is_open)
    return METRICS[name].label + unit + _ARROWS.get(way, "")


def _bars(results: Results, name: str, values: list[float]) -> go.Figure:
    margin = {"l": 0, "t": 4, "b": 8, "r": 0}
    height = 24 + BAR_PIXELS * len(values)
    drawn = style.figure("", "", height, bargap=0.25, margin=margin)
    label, marker = style.labels(results), style.markers(results)
    largest = float(np.nanmax(values)) or 1.0
    ends = [largest]
    for i, (deployment, value) in enumerate(zip(results.deployments, values, strict=True)):
        currency = str(results.facts(deployment).get("currency") or "")
        text = metrics.metric(name, value, currency)
        band = band_text(results, deployment, name, value, currency)
        edges = edges_of(results, deployment, name, value) if band else None
        low, high = edges or (value, value)
        hover = f"<br>80 % of cases: {band}" if band else ""
        drawn.add_bar(
            orientation="h",
            x=[0.0 if math.isnan(value) else value],
            y=[i],
            name=label[deployment],
            marker=marker[deployment],
            hovertemplate=f"{text}{hover}<extra>{label[deployment]}</extra>",
        )
        if high - low > _LEAST * largest:
            drawn.add_shape(type="line", x0=low, x1=high, y0=i, y1=i, line=_LINE)
        ends.append(float(np.nan_to_num(high)))
        drawn.add_annotation(x=ends[-1], y=i, text=text, xanchor="left", xshift=2, yanchor="middle")
    drawn.update_annotations(showarrow=False)
    drawn.update_xaxes(visible=False, range=[0, 1.65 * max(ends)])
    drawn.update_yaxes(visible=False, range=[len(values) - 0.4, -0.6])
    return drawn
