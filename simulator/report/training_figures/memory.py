"""Memory of the fullest GPU."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.stacked_bars import draw_stacked
from simulator.results.formats import bytes_axis, num_bytes
from simulator.results.training import MEMORY_PARTS, TrainingResults

_COLOURS = dict(zip(MEMORY_PARTS, ("#4477AA", "#EE6677", "#AA8811", "#66CCEE"), strict=True))


class Memory(Figure[TrainingResults]):
    """A stacked bar a deployment, and a line at what there is."""

    title = "Memory of the fullest GPU"
    section = "What it holds"
    definition = (
        "Bytes of weights, gradients, optimizer state and activations; the dotted line is the "
        "least that any of the deployments may fill."
    )
    absent = "The run does not say what its memory holds."
    order = 30
    width = "full"

    def draw(self, results: TrainingResults) -> go.Figure | None:
        held = {name: style.facts(results, name)["memory_bytes"] for name in results.deployments}
        table = pd.DataFrame.from_dict(held, orient="index").astype(float)
        unit_bytes, unit = bytes_axis(float(table["room"].max()))
        sizes = table[list(MEMORY_PARTS)]
        title = f"Memory of one GPU ({unit})"
        drawn = draw_stacked(results, sizes, _COLOURS, title, num_bytes, unit_bytes)
        room = float(table["room"].min()) / unit_bytes
        drawn.add_vline(x=room, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return drawn.update_xaxes(range=[0, 1.02 * float(table["room"].max()) / unit_bytes])
