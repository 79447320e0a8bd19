"""The numbers people compare first, one small plot each."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.results import formats
from simulator.results.folder import Results
from simulator.results.metrics import METRICS
from simulator.results.run_bands_text import band_text

BAR_PIXELS = 26


class Comparison(Frozen):
    """A bar a deployment, a plot a metric; metrics that no deployment defines are left out."""

    title: ClassVar[str] = "The deployments side by side"
    section: ClassVar[str] = "Comparison"
    definition: ClassVar[str] = (
        "Each plot has its own scale from zero; an arrow says which way is better, "
        "and a dash that it is undefined."
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
        for i, deployment in enumerate(results.deployments):
            currency = str(style.facts(results, deployment).get("currency") or "")
            text = formats.metric(name, float(values[i]), currency)
            band = band_text(results, deployment, name, float(values[i]), currency)
            hover = f"<br>80 % of cases: {band}" if band else ""
            whisker = _whisker(results, deployment, name, float(values[i])) if band else None
            drawn.add_bar(
                orientation="h",
                x=[float(np.nan_to_num(values[i]))],
                y=[i],
                name=label[deployment],
                marker=marker[deployment],
                text=[text],
                textposition="outside",
                cliponaxis=False,
                hovertemplate=f"{text}{hover}<extra>{label[deployment]}</extra>",
                error_x=whisker,
            )
        drawn.update_xaxes(visible=False, range=[0, 1.65 * largest])
        drawn.update_yaxes(visible=False, range=[len(values) - 0.4, -0.6])
        return drawn


def _whisker(results: Results, deployment: str, name: str, value: float) -> dict[str, Any]:
    """A line from the 10th to the 90th percentile of what a figure may be."""
    low, high = results.run["bands"]["deployments"][deployment][name]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value)],
        "arrayminus": [max(0.0, value - low)],
        "thickness": 1,
        "width": 3,
        "color": style.MUTED,
    }
