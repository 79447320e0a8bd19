"""The numbers people compare first, one small plot each."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.results import formats
from simulator.results.folder import Results
from simulator.results.metrics import METRICS
from simulator.results.run_bands_text import band_text, edges_of

BAR_PIXELS = 26
_LINE = "#2B3544"
_LEAST = 0.02
"""Bands that are narrower than this share of the longest bar are not drawn."""


class Comparison(Frozen):
    """A bar a deployment, a plot a metric; metrics that no deployment defines are left out."""

    title: ClassVar[str] = "The deployments side by side"
    section: ClassVar[str] = "Comparison"
    definition: ClassVar[str] = (
        "Each plot has its own scale from zero; an arrow says which way is better, a line, if any, "
        "holds 80 % of what the figure may be, and a dash says that it is undefined."
    )
    absent: ClassVar[str] = "No request finished."
    order: ClassVar[int] = 10
    width: ClassVar[Literal["full", "half", "quarter"]] = "quarter"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        arrow = {"lower": " ↓", "higher": " ↑"}
        for name in formats.KEY_METRICS:
            values = (
                results.summary[name].to_numpy(float) if name in results.summary else np.array([])
            )
            if np.isfinite(values).any():
                unit = f" ({formats.heading_unit(name)})" if formats.heading_unit(name) else ""
                plots[
                    METRICS[name].label
                    + unit
                    + arrow.get(formats.better_way(name, is_open=results.is_open), "")
                ] = self._bars(results, name, values)
        return plots

    def _bars(self, results: Results, name: str, values: np.ndarray) -> go.Figure:
        drawn = style.figure(
            "",
            "",
            height=24 + BAR_PIXELS * len(values),
            bargap=0.25,
            margin={"l": 0, "t": 4, "b": 8, "r": 0},
        )
        label, marker = style.labels(results), style.markers(results)
        largest = float(np.nanmax(values)) or 1.0
        ends = [largest]
        for i, deployment in enumerate(results.deployments):
            currency = str(style.facts(results, deployment).get("currency") or "")
            value = float(values[i])
            text = formats.metric(name, value, currency)
            band = band_text(results, deployment, name, value, currency)
            edges = edges_of(results, deployment, name, value) if band else None
            low, high = edges or (value, value)
            hover = f"<br>80 % of cases: {band}" if band else ""
            drawn.add_bar(
                orientation="h",
                x=[float(np.nan_to_num(value))],
                y=[i],
                name=label[deployment],
                marker=marker[deployment],
                hovertemplate=f"{text}{hover}<extra>{label[deployment]}</extra>",
            )
            if high - low > _LEAST * largest:
                line = {"color": _LINE, "width": 1.5}
                drawn.add_shape(type="line", x0=low, x1=high, y0=i, y1=i, line=line)
            end = float(np.nan_to_num(high))
            ends.append(end)
            drawn.add_annotation(
                x=end, y=i, text=text, xanchor="left", xshift=2, showarrow=False, yanchor="middle"
            )
        drawn.update_xaxes(visible=False, range=[0, 1.65 * max(ends)])
        drawn.update_yaxes(visible=False, range=[len(values) - 0.4, -0.6])
        return drawn
