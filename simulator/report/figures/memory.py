"""What the memory of an accelerator holds."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.figures._bars import stacked
from simulator.results.folder import Results
from simulator.results.formats import bytes_axis, num_bytes


class Memory(Frozen):
    """A stacked bar a deployment."""

    title: ClassVar[str] = "Memory of one accelerator"
    section: ClassVar[str] = "Memory"
    definition: ClassVar[str] = (
        "Bytes per accelerator that hold weights, that are left for the KV cache (how many "
        "requests fit), and that are kept in reserve."
    )
    absent: ClassVar[str] = "The run does not say what its memory holds."
    order: ClassVar[int] = 90
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, results: Results) -> go.Figure | None:
        held = {name: style.facts(results, name).get("memory") for name in results.deployments}
        memory = {name: table for name, table in held.items() if table}
        if not memory:
            return None
        keys = {"weights": "weights_bytes", "KV cache": "kv_bytes", "reserve": "reserve_bytes"}
        sizes = {
            part: [float(table.get(key) or 0) for table in memory.values()]
            for part, key in keys.items()
        }
        unit_bytes, unit = bytes_axis(max(sum(part) for part in zip(*sizes.values(), strict=True)))
        parts = {part: [size / unit_bytes for size in values] for part, values in sizes.items()}
        texts = {part: [num_bytes(size) for size in values] for part, values in sizes.items()}
        return stacked(
            results,
            list(memory),
            parts,
            style.MEMORY_COLOURS,
            f"Memory of one accelerator ({unit})",
            texts,
        )
