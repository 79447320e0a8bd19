"""What the best deployment of each model costs."""

from __future__ import annotations

import html
from typing import Any, ClassVar

import plotly.graph_objects as go

from simulator.report.model_colours import colour_of, is_striped, label_of
from simulator.report.plan_bands import band, between
from simulator.report.plan_figures import _rows
from simulator.report.plan_figures._wide import Wide
from simulator.results.plan_text import amount, gpus, hover, money, times


class Models(Wide):
    """A bar a model."""

    title: ClassVar[str] = "The cheapest deployment of each model"
    section: ClassVar[str] = "Models against each other"
    definition: ClassVar[str] = (
        "Cost per hour of the cheapest cluster on which the model meets every target; "
        "striped bars are dense models. Models that are not shown do not meet every target on any "
        "cluster within the limits."
    )
    absent: ClassVar[str] = "No model meets the targets."
    order: ClassVar[int] = 10

    def draw(self, answer: dict[str, Any]) -> go.Figure | None:
        rows = sorted(
            answer.get("best_of_each_model", {}).values(),
            key=lambda row: (row["cost_per_hour"], row["gpus"]),
        )
        if len(rows) < 2:
            return None
        currency = answer.get("currency", "USD")
        is_priced = rows[-1]["cost_per_hour"] > 0
        key = "cost_per_hour" if is_priced else "gpus"
        first, bars = rows[0][key], []
        for row in rows:
            against = f", {times(row[key] / first)}" if row is not rows[0] and first else ""
            said = f"{money(row[key], currency)} per hour" if is_priced else gpus(row)
            found = band(row, key)
            cases = between(found, amount)
            bars.append(
                _rows.Row(
                    title=html.unescape(label_of(row)),
                    said=f"{said}{against}",
                    end=row[key],
                    hover=hover(
                        row["deployment"],
                        f"{said}{against}",
                        f"80 % of cases: {cases}" if cases else "",
                    ),
                    colour=colour_of(answer, row),
                    is_striped=is_striped(row),
                    band=found,
                )
            )
        axis = f"Cost per hour ({currency})" if is_priced else "GPUs"
        return _rows.plot(bars, axis, range=[0, 1.02 * _rows.reach(bars)], nticks=6)
