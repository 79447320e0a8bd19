"""Contents of the memory of an accelerator."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import draw_stacked
from simulator.results.folder import Results
from simulator.results.formats import bytes_axis, num_bytes

_PARTS = {
    "weights_bytes": "weights",
    "module_bytes": "drafting module",
    "kv_bytes": "KV cache",
    "reserve_bytes": "reserve",
}


class Memory(Figure[Results]):
    """A stacked bar a deployment."""

    title = "Memory of one accelerator"
    section = "Memory"
    definition = (
        "Bytes per accelerator that hold weights, that are left for the KV cache (how many "
        "requests fit), and that are kept in reserve."
    )
    absent = "The run does not say what its memory holds."
    order = 90
    width = "full"

    def draw(self, results: Results) -> go.Figure | None:
        held = {name: style.facts(results, name).get("memory") for name in results.deployments}
        memory = {name: table for name, table in held.items() if table}
        if not memory:
            return None
        sizes = pd.DataFrame.from_dict(memory, orient="index").reindex(columns=list(_PARTS))
        sizes = sizes.rename(columns=_PARTS).astype(float).fillna(0.0)
        unit_bytes, unit = bytes_axis(float(sizes.sum(axis=1).max()))
        title = f"Memory of one accelerator ({unit})"
        return draw_stacked(results, sizes, style.MEMORY_COLOURS, title, num_bytes, unit_bytes)
