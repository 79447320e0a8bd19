"""Cost of the best deployment of each model."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from simulator.report.gallery import Figure
from simulator.report.model_colours import colour_of, is_striped, label_of
from simulator.report.plan_bands import band_text
from simulator.report.plan_figures import _rows
from simulator.results.answer import Answer
from simulator.results.plan_text import amount, gpus, hover, per_hour, times


class Models(Figure[Answer]):
    """A bar a model."""

    title = "The cheapest deployment of each model"
    section = "Models against each other"
    definition = (
        "Cost per hour of the cheapest cluster on which the model meets every target; "
        "striped bars are dense models. Whiskers: the cluster that would be needed, were its size "
        "chosen knowing the simulator's error. Models that are not shown do not meet every target "
        "on any cluster within the limits."
    )
    absent = "No model meets the targets."
    order = 10
    width = "full"

    def draw(self, answer: Answer) -> go.Figure | None:
        rows = sorted(
            answer.best_of_each_model.values(), key=lambda row: (row.cost_per_hour, row.gpus)
        )
        if len(rows) < 2:
            return None
        is_priced = rows[-1].cost_per_hour > 0
        key = "cost_per_hour" if is_priced else "gpus"
        values = [row.cost_per_hour if is_priced else float(row.gpus) for row in rows]
        bars = []
        for row, value in zip(rows, values, strict=True):
            said = per_hour(value, answer) if is_priced else gpus(row)
            said += f", {times(value / values[0])}" if row is not rows[0] and values[0] else ""
            needed = row.band_of(f"needed_{key}")
            cases = band_text(needed, amount)
            bars.append(
                _rows.Row(
                    title=html.unescape(label_of(row)),
                    said=said,
                    end=value,
                    hover=hover(
                        row.deployment, said, f"80 % of cases need {cases}" if cases else ""
                    ),
                    colour=colour_of(answer, row),
                    is_striped=is_striped(row),
                    band=needed,
                )
            )
        axis = f"Cost per hour ({answer.currency})" if is_priced else "GPUs"
        return _rows.plot(bars, axis, range=[0, 1.02 * _rows.reach(bars)], nticks=6)
