"""Bytes of the all-to-alls between ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.heat import integer_axes
from simulator.report.spans import WHICH, heading
from simulator.results.folder import Results
from simulator.results.formats import bytes_axis

MAX_CELLS = 64
"""Ranks on a side; more are added up in equal groups."""


class Traffic(Figure[Results]):
    """Dispatch and combine side by side, a plot a deployment and phase."""

    title = "Bytes from rank to rank"
    section = "Traffic between ranks"
    definition = (
        "Bytes that each rank sends to each other rank in a mean MoE layer of one step; "
        f"what stays on a rank is no traffic. {WHICH}"
    )
    absent = "No tokens travel between ranks in this run."
    order = 60

    def draw(self, results: Results) -> dict[str, go.Figure]:
        return {
            heading(results, str(name), str(phase)): _pair(table)
            for (name, phase), table in results.traffic.groupby(["deployment", "phase"], sort=False)
        }


def _pair(table: pd.DataFrame) -> go.Figure:
    num_ranks = int(table[["source", "destination"]].to_numpy().max()) + 1
    group = -(-num_ranks // MAX_CELLS)
    matrices = {
        str(direction): _matrix(part, num_ranks, group)
        for direction, part in table.groupby("direction", sort=False)
    }
    largest = max(float(np.nanmax(matrix, initial=0)) for matrix in matrices.values())
    unit_bytes, unit = bytes_axis(largest)
    titles = list(matrices)
    drawn = make_subplots(
        cols=len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06
    )
    what = "rank" if group == 1 else f"group of {group} ranks"
    whose = "rank (index)" if group == 1 else f"ranks (groups of {group})"
    for column, (direction, matrix) in enumerate(matrices.items(), start=1):
        hover = f"{what} %{{y}} to {what} %{{x}}<br>%{{z:.3~g}} {unit}<extra>{direction}</extra>"
        at = {"row": 1, "col": column}
        z = matrix / unit_bytes
        drawn.add_heatmap(z=z, coloraxis="coloraxis", hovertemplate=hover, **at)
        integer_axes(drawn, *matrix.shape, **at)
        matches = "x" if column > 1 else None
        drawn.update_xaxes(title_text=f"To {whose}", constrain="domain", matches=matches, **at)
    # Squares, so that a row and a column weigh the same.
    drawn.update_yaxes(constrain="domain", constraintoward="top")
    drawn.update_yaxes(scaleanchor="x", title_text=f"From {whose}", row=1, col=1)
    scale = {
        "colorscale": style.AMOUNT_COLOURS,
        "cmin": 0,
        "cmax": (largest or 1.0) / unit_bytes,
        "colorbar": {"title": {"text": unit}},
    }
    drawn.update_layout(
        height=310, meta={"width_factor": 0.5, "plus": 30}, margin_t=30, coloraxis=scale
    )
    drawn.update_annotations(font_size=12)
    return drawn


def _matrix(part: pd.DataFrame, num_ranks: int, group: int) -> NDArray[np.float64]:
    sent = np.zeros((-(-num_ranks // group),) * 2)
    places = (part["source"].to_numpy(int) // group, part["destination"].to_numpy(int) // group)
    np.add.at(sent, places, part["num_bytes"].to_numpy(float))
    if group == 1:
        np.fill_diagonal(sent, np.nan)
    return sent
