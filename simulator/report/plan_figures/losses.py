"""What is left when nodes fail."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.formats import number
from simulator.report.plan_text import hover, percent
from simulator.spec.base import Frozen

_MET, _MISSED = "#228833", "#EE6677"


class Losses(Frozen):
    """A bar a number of lost nodes."""

    title: ClassVar[str] = "When nodes are lost"
    section: ClassVar[str] = "When nodes fail"
    definition: ClassVar[str] = (
        "The recommended deployment on what is left of its cluster, at the same traffic: green where every target is still met, red "
        "and striped where one is missed."
    )
    absent: ClassVar[str] = "No loss was simulated."
    order: ClassVar[int] = 50
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        rows = answer.get("losses") or []
        if not rows:
            return None
        key, title = next(
            ((key, title) for key, title in _AXES.items() if all(_is_number(row.get(key)) for row in rows)), (None, "")
        )
        if key is None:
            return None
        drawn = style.figure("Nodes lost", title, height=300, bargap=0.5)
        drawn.add_bar(
            x=[str(row["nodes_lost"]) for row in rows],
            y=[float(f"{row[key]:.4g}") for row in rows],
            showlegend=False,
            marker={
                "color": [_MET if row.get("met") else _MISSED for row in rows],
                "pattern": {"shape": ["" if row.get("met") else "/" for row in rows]},
            },
            text=[f"{number(row[key])}" for row in rows],
            textposition="outside",
            cliponaxis=False,
            customdata=[_said(row) for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
        if key == "worst_ratio":
            drawn.add_hline(y=1, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        drawn.update_xaxes(type="category", showgrid=False)
        drawn.update_yaxes(range=[0, 1.15 * max(*(row[key] for row in rows), 1e-9, 1.0 if key == "worst_ratio" else 0.0)])
        return drawn


_AXES = {
    "goodput_per_s": "Requests within their limits (1/s)",
    "worst_ratio": "Tightest target over its limit",
}


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _said(row: dict[str, Any]) -> str:
    lines = [f"{row['nodes_lost']} nodes lost, {row.get('gpus_left', 0)} GPUs left"]
    if _is_number(row.get("goodput_per_s")):
        lines.append(f"{number(row['goodput_per_s'])} requests/s within their limits")
    if _is_number(row.get("attainment")):
        lines.append(f"{percent(row['attainment'])} of requests within their limits")
    if _is_number(row.get("worst_ratio")):
        lines.append(f"the tightest target is at {percent(row['worst_ratio'])} of its limit")
    return hover(*lines)
