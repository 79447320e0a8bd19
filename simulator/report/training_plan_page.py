"""The page of a plan of training."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.deployment_tables import describe_making
from simulator.report.figure_cards import FigureCards
from simulator.report.marks import DOTTED, log_axis, whiskers
from simulator.report.rendering import render_page
from simulator.results.formats import num_bytes, number, percent
from simulator.results.training_answer import TrainingAnswer, list_sizes

_CAPTION = (
    "The cheapest split of each model on each number of GPUs; whiskers are 80 % bands. Lower and "
    "further left is better; the dotted line is the target."
)


def render(answer: TrainingAnswer) -> str:
    """The page as one HTML document that opens offline."""
    cards, run = FigureCards(), answer.run
    question = run["training_question"]
    drawn = _draw(answer.candidates, question["targets"]["days"], run["currency"])
    return render_page(
        "training_plan.html",
        str(run["name"]),
        cards,
        headline=run["verdict"]["headline"],
        reasons=run["verdict"]["reasons"],
        question=question,
        card=cards.card("Cost against days", _CAPTION, {"": drawn}),
        rows=[_write_row(row) for row in list_sizes(answer.candidates).to_dict("records")],
        currency=run["currency"],
        ruled_out=sorted(run["ruled_out"].items(), key=lambda item: -item[1]),
        recommended=answer.recommended,
        making={"Command": run.get("command")} | describe_making(run),
    )


def _write_row(row: dict[Any, Any]) -> dict[str, Any]:
    return {
        "model": row["model"],
        "split": f"{int(row['num_gpus']):,} {row['cluster']}: {row['split']}",
        "cells": [
            f"{number(row['days'])} ({number(row['days_low'])} to {number(row['days_high'])})",
            f"{row['cost']:,.0f}",
            f"{number(row['tokens_per_s_per_gpu'])}",
            percent(row["mfu"]),
            percent(row["bubble_share"]),
            num_bytes(row["memory_bytes"]),
            f"{int(row['micro_batch'])}",
            str(row["recompute"]),
        ],
        "keeps": bool(row["keeps_target"]),
    }


def _draw(candidates: pd.DataFrame, days: float, currency: str) -> go.Figure:
    """Draw a line for each model and kind of machine, over the numbers of GPUs."""
    best = list_sizes(candidates)
    ends = [best["days_low"].min(), best["days_high"].max(), days]
    drawn = style.figure(
        "Days until all tokens are trained on (days)",
        f"Cost of the training ({currency})",
        420,
        xaxis=log_axis(min(ends) / 1.1, max(ends) * 1.1),
        yaxis=log_axis(float(best["cost"].min()) / 1.3, float(best["cost"].max()) * 1.3)
        if best["cost"].min() > 0
        else {},
    )
    lines = best.groupby(["model", "cluster"], sort=False)
    is_one = len(set(best["cluster"])) == 1
    for place, (name, own) in enumerate(lines):
        model, cluster = name
        own = own.sort_values("days")
        label = html.escape(str(model if is_one else f"{model} on {cluster}"), quote=False)
        drawn.add_scatter(
            x=own["days"].to_numpy(float),
            y=own["cost"].to_numpy(float),
            error_x=whiskers(own["days"], own["days_low"], own["days_high"], thickness=1, width=3),
            name=label,
            line=style.line_at(place),
            mode="lines+markers",
            customdata=[
                [int(row["num_gpus"]), str(row["split"])] for row in own.to_dict("records")
            ],
            hovertemplate="%{x:,.3~g} days, %{y:,.0f} on %{customdata[0]} GPUs, %{customdata[1]}"
            f"<extra>{label}</extra>",
        )
    drawn.add_vline(x=days, line=DOTTED)
    return drawn
