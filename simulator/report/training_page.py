"""The page of a recording that was made by training: how fast three models learned, and which
experts each domain used.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.report import style, tables
from simulator.report.cards import Cards
from simulator.report.document import document, facts_list
from simulator.report.heat import load_map
from simulator.report.markup import Markup, tag
from simulator.results.formats import TIMES, parameters, seconds

_TITLE = "Recorded by training"
_LOSS = "Held-out loss (nats a byte)"
_MAP_HEIGHT = 230


def render(
    headline: str,
    findings: Sequence[str],
    outcomes: pd.DataFrame,
    curve: pd.DataFrame,
    loads: Mapping[str, NDArray[np.float64]],
    facts: Mapping[str, str],
) -> str:
    """The page as one HTML document that opens offline.

    Args:
        headline: the result in a sentence.
        findings: what else the numbers say, a sentence each.
        outcomes: a row a model: ``model``, ``num_parameters``, ``num_active_parameters``,
            ``tokens``, ``seconds``, ``held_out_loss``, ``same_time_tokens``, ``same_time_loss``,
            ``seconds_to_moe_loss``.
        curve: a row a run, model and evaluation: ``run``, ``model``, ``tokens``, ``seconds``,
            ``held_out_loss``; in the first run all models saw the same tokens, in others they had
            the same time.
        loads: by domain, how often each expert was chosen over the layer's mean, ``[L, E]``.
        facts: how it was made, by name.
    """
    cards = Cards()
    models = [str(name) for name in outcomes["model"]]
    by_time = cards.card(
        "Held-out loss against time",
        "Seconds of each model's own steps: steps so far times its median step. Solid: "
        "all models on the same tokens. Dashed: the dense ones anew, for as long as the mixture "
        "of experts computed. Lower and further left is better.",
        {"": _curves(curve, models, "seconds", "Own compute (s)")},
        spans_half=True,
    )
    by_tokens = cards.card(
        "Held-out loss against tokens",
        "All models see the same batches in the same order; "
        "solid and dashed as beside. Lower is better.",
        {"": _curves(curve, models, "tokens", "Training tokens (bytes)")},
        spans_half=True,
    )
    maps = cards.card(
        "Expert load by layer and domain",
        "How often the mixture of experts chose each expert on held-out text, "
        "over the layer's mean; one scale for all maps.",
        {html.escape(name, quote=False): _map(load) for name, load in loads.items()},
        width="half" if len(loads) > 1 else "full",
    )
    main = tag(
        "main",
        tag(
            "header",
            tag("p", _TITLE, class_="eyebrow"),
            tag("h1", headline),
            tag("ul", *(tag("li", said) for said in findings), class_="reasons"),
        ),
        tag(
            "section",
            tag("h2", "How fast they learned"),
            tag("div", by_time, by_tokens, class_="cards"),
        ),
        tag("section", tag("h2", "At the end of the run"), _table(outcomes)),
        tag("section", tag("h2", "What the experts did"), tag("div", maps, class_="cards")),
        tag("section", tag("h2", "How it was made"), facts_list(facts)),
    )
    return document(_TITLE, main, cards.payload)


def _curves(curve: pd.DataFrame, models: list[str], column: str, title: str) -> go.Figure:
    """The loss of every model but for the untrained one's, which would flatten the rest."""
    drawn = style.figure(title, _LOSS, height=340)
    for place, (run, of_run) in enumerate(curve[curve["tokens"] > 0].groupby("run", sort=False)):
        for number, name in enumerate(models):
            own = of_run[of_run["model"] == name]
            if own.empty:
                continue
            drawn.add_scatter(
                x=own[column].to_numpy(float),
                y=own["held_out_loss"].to_numpy(float),
                name=html.escape(name, quote=False),
                line={
                    "color": style.DEPLOYMENT_COLOURS[number],
                    "dash": style.DASHES[place],
                    "width": 2,
                },
                mode="lines+markers",
                hovertemplate=f"%{{y:.3f}} nats at %{{x:,.4~g}}, {run}",
            )
    return drawn


def _map(load_LE: NDArray[np.float64]) -> go.Figure:
    return load_map(load_LE, "Expert", "choices").update_layout(height=_MAP_HEIGHT)


def _table(outcomes: pd.DataFrame) -> Markup:
    head = (
        "Model",
        "Parameters",
        "Active",
        "Own time for the same tokens",
        "Held-out loss",
        "Tokens in the same time",
        "Held-out loss in the same time",
        "Time to the mixture's loss",
    )
    first = float(outcomes["seconds"].iloc[0])
    rows = []
    for row in outcomes.to_dict("records"):
        reached = row["seconds_to_moe_loss"]
        is_reached = reached is not None and np.isfinite(reached)
        cells = [
            parameters(row["num_parameters"]),
            parameters(row["num_active_parameters"]),
            f"{seconds(row['seconds'])} ({row['seconds'] / first:.2f}{TIMES})"
            if first
            else seconds(row["seconds"]),
            f"{row['held_out_loss']:.3f}",
            f"{row['same_time_tokens']:,}",
            f"{row['same_time_loss']:.3f}",
            seconds(reached) if is_reached else "not reached",
        ]
        rows.append(
            tag(
                "tr",
                tag("th", str(row["model"]), scope="row"),
                *(tag("td", cell) for cell in cells),
            )
        )
    return tables.table(head, rows, "metrics", "The models at the end of the run")
