"""What the cost hangs on: the answer under other conditions."""

from __future__ import annotations

import html
import math
from typing import Any, ClassVar, Literal

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.plan_figures._models import BAR_PIXELS
from simulator.report.plan_text import hover, money, times
from simulator.spec.base import Frozen

_MORE, _LESS, _NONE = "#B2182B", "#2166AC", "#A5ACB5"


class Sensitivity(Frozen):
    """A bar a change: the cost of the best answer under it, over today's."""

    title: ClassVar[str] = "What the cost hangs on"
    section: ClassVar[str] = "What if"
    definition: ClassVar[str] = (
        "Each change alone, with the best deployment chosen anew: its cost per hour over today's, on a logarithmic axis, the largest "
        "change first. Striped where another model or other machines are then the best choice."
    )
    absent: ClassVar[str] = "No change was tried."
    order: ClassVar[int] = 40
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        rows = [row for row in answer.get("sensitivity") or [] if row.get("cost_ratio") or not row.get("deployment")]
        if not any(row.get("cost_ratio") for row in rows):
            return None
        rows = sorted(rows, key=lambda row: -abs(math.log(row["cost_ratio"])) if row.get("cost_ratio") else -math.inf)
        ratios = [row.get("cost_ratio") or 1.0 for row in rows]
        reach = max([1.5, *ratios, *(1 / ratio for ratio in ratios)]) * 1.1
        low, high = (1 / reach if min(ratios) < 1 else 0.8), (reach if max(ratios) > 1 else 1.25)
        ticks = [tick for tick in (0.1, 0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10, 20, 50) if low <= tick <= high]
        axis = {
            "type": "log",
            "range": [math.log10(low), math.log10(high)],
            "tickvals": ticks,
            "ticktext": [times(tick) if tick != int(tick) else f"{tick:.0f}\N{MULTIPLICATION SIGN}" for tick in ticks],
        }
        drawn = style.figure("Cost over today's", "", height=64 + BAR_PIXELS * len(rows), bargap=0.56, xaxis=axis)
        for place, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
            is_met = bool(row.get("cost_ratio"))
            said, cost = _said(row, is_met), row.get("cost_per_hour")
            priced = [f"{money(cost, answer.get('currency', 'USD'))} per hour"] if cost else []
            drawn.add_bar(
                orientation="h",
                y=[place],
                x=[ratio - 1.0],
                base=[1.0],
                showlegend=False,
                marker={
                    "color": _NONE if not is_met else _MORE if ratio > 1 else _LESS,
                    "pattern": {"shape": "/" if row.get("flips") else ""},
                },
                text=[hover(str(row["change"]), said, *priced, str(row.get("deployment") or ""))],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
            drawn.add_annotation(
                x=math.log10(low),
                y=place - 0.24,
                xanchor="left",
                yanchor="bottom",
                text=f"<b>{style.short(html.escape(str(row['change']), quote=False), 34)}</b>  {said}",
            )
        drawn.add_vline(x=1, line={"color": style.MUTED, "width": 1})
        drawn.update_yaxes(visible=False, range=[len(rows) - 0.7, -0.75])
        return drawn


def _said(row: dict[str, Any], is_met: bool) -> str:
    if not is_met:
        return "no deployment within the limits"
    flips = ", another choice" if row.get("flips") else ""
    return f"{times(row['cost_ratio'])}{flips}"
