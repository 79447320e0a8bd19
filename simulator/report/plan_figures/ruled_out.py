"""How many candidates were ruled out, by reason."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.formats import log_ticks
from simulator.report.plan_figures._models import BAR_PIXELS
from simulator.report.plan_text import hover
from simulator.spec.base import Frozen

_MOST = 10


class RuledOut(Frozen):
    """A bar a reason."""

    title: ClassVar[str] = "Candidates ruled out, by reason"
    section: ClassVar[str] = "Ruled out"
    definition: ClassVar[str] = "How many candidates each reason ruled out, on a logarithmic axis."
    absent: ClassVar[str] = "No candidate was ruled out."
    order: ClassVar[int] = 60
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        rows = sorted((row for row in answer.get("ruled_out", []) if row["count"]), key=lambda row: -row["count"])[:_MOST]
        if not rows:
            return None
        high = max(10.0, 1.3 * rows[0]["count"])
        axis = {"type": "log", "range": [math.log10(0.7), math.log10(high)], **log_ticks(0.7, max(high, 300.0))}
        drawn = style.figure("Candidates", "", height=56 + BAR_PIXELS * len(rows), bargap=0.56, xaxis=axis)
        drawn.add_bar(
            orientation="h",
            y=list(range(len(rows))),
            x=[row["count"] for row in rows],
            showlegend=False,
            marker={"color": style.MUTED},
            text=[hover(row["reason"], f"{row['count']:,} candidates, such as", row["example"]) for row in rows],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
        for place, row in enumerate(rows):
            drawn.add_annotation(
                x=math.log10(0.7),
                y=place - 0.24,
                xanchor="left",
                yanchor="bottom",
                text=f"<b>{row['count']:,}</b>  {style.short(hover(row['reason']).replace('<br>', ' '), 42)}",
            )
        drawn.update_yaxes(visible=False, range=[len(rows) - 0.7, -0.75])
        return drawn
