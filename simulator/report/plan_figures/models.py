"""What the best deployment of each model costs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.plan_figures._models import BAR_PIXELS, colours, label_of
from simulator.report.plan_text import gpus, hover, kind_of, money, times
from simulator.spec.base import Frozen


class Models(Frozen):
    """A bar a model."""

    title: ClassVar[str] = "The cheapest deployment of each model"
    section: ClassVar[str] = "Models against each other"
    definition: ClassVar[str] = (
        "Cost per hour of the smallest cluster on which the model meets every target; striped bars are dense models. Models that are "
        "not shown meet no target within the limits."
    )
    absent: ClassVar[str] = "No model meets the targets."
    order: ClassVar[int] = 10
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        rows = sorted(answer.get("best_of_each_model", {}).values(), key=lambda row: (row["cost_per_hour"], row["gpus"]))
        if len(rows) < 2:
            return None
        currency, colour = answer.get("currency", "USD"), colours(answer)
        is_priced = rows[-1]["cost_per_hour"] > 0
        lengths = [row["cost_per_hour"] if is_priced else row["gpus"] for row in rows]
        drawn = style.figure(
            f"Cost per hour ({currency})" if is_priced else "GPUs", "", height=56 + BAR_PIXELS * len(rows), bargap=0.56, margin_l=12
        )
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            against = f" ({times(length / lengths[0])})" if place and lengths[0] else ""
            said = f"{money(row['cost_per_hour'], currency)} per hour{against}" if is_priced else gpus(row)
            drawn.add_bar(
                orientation="h",
                y=[place],
                x=[length],
                name=label_of(row),
                showlegend=False,
                marker={"color": colour[row["model"]], "pattern": {"shape": "/" if kind_of(row) == "dense" else ""}},
                text=[hover(row["deployment"], said)],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
            drawn.add_annotation(
                x=0,
                y=place - 0.24,
                xanchor="left",
                yanchor="bottom",
                text=f"<b>{style.short(label_of(row), 28)}</b>  {said if is_priced else ''}",
            )
        drawn.update_yaxes(visible=False, range=[len(rows) - 0.7, -0.75])
        drawn.update_xaxes(rangemode="tozero", range=[0, 1.01 * max(lengths)], nticks=8)
        return drawn
