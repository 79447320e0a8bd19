"""The page of a recording that was made by training."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.report import style
from simulator.report.figure_cards import FigureCards, pair_up
from simulator.report.heat import load_map
from simulator.report.marks import whiskers
from simulator.report.rendering import render_page

_LOSS = "Held-out loss (nats a byte)"
_MAP_HEIGHT = 230
_BY_TIME = (
    "Seconds of each model's own steps: steps so far times its median step. Solid: "
    "all models on the same tokens. Dashed: the dense ones anew, for as long as the mixture "
    "of experts computed. Means over seeds, whiskers from the lowest to the highest. Lower and "
    "further left is better."
)
_BY_TOKENS = (
    "All models see the same batches in the same order; "
    "solid and dashed as beside. Lower is better."
)
_MAPS = (
    "How often the mixture of experts chose each expert on held-out text, "
    "over the layer's mean; one scale for all maps."
)


def render(
    headline: str,
    findings: Sequence[str],
    outcomes: pd.DataFrame,
    trials: pd.DataFrame,
    curve: pd.DataFrame,
    loads: Mapping[str, NDArray[np.float64]],
    facts: Mapping[str, str],
) -> str:
    """The page as one HTML document that opens offline.

    Args:
        headline: the result in a sentence.
        findings: what else the numbers say, a sentence each.
        outcomes: a row a model: ``model``, ``num_parameters``, ``num_active_parameters``,
            ``learning_rate``, ``tokens``, ``seconds``, ``step_s``, ``step_band_s``,
            ``simulated_step_s``, ``held_out_loss``, ``above_moe``,
            ``same_time_tokens``, ``same_time_loss``, ``same_time_above_moe``, ``num_seeds``,
            ``num_reached``, ``seconds_to_moe_loss``, ``time_to_moe_loss``: fields of
            :class:`~simulator.runtime.recording.comparison.Outcome`.
        trials: a row a model and learning rate: ``model``, ``learning_rate``, ``steps``,
            ``held_out_loss``.
        curve: a row a run, seed, model and evaluation: ``run``, ``seed``, ``model``, ``tokens``,
            ``seconds``, ``held_out_loss``; in the first run all models saw the same tokens, in
            others they had the same time.
        loads: by domain, how often each expert was chosen over the layer's mean, ``[L, E]``.
        facts: how it was made, by name.
    """
    cards = FigureCards()
    by_time = _curves(curve, outcomes["model"], "seconds", "Own compute (s)")
    by_tokens = _curves(curve, outcomes["model"], "tokens", "Training tokens (bytes)")
    curves = [
        ("Held-out loss against time", _BY_TIME, by_time),
        ("Held-out loss against tokens", _BY_TOKENS, by_tokens),
    ]
    maps = {
        html.escape(name, quote=False): load_map(load, "Expert", "choices", _MAP_HEIGHT)
        for name, load in loads.items()
    }
    return render_page(
        "training.html",
        "Recorded by training",
        cards,
        headline=headline,
        findings=findings,
        curves=pair_up(cards, curves),
        maps=[cards.card("Expert load by layer and domain", _MAPS, maps, "half")],
        outcomes=outcomes.to_dict("records"),
        trials=trials.pivot_table("held_out_loss", "learning_rate", "model", sort=False),
        trial_steps=int(trials["steps"].iloc[0]),
        facts=facts,
    )


def _curves(curve: pd.DataFrame, models: pd.Series, column: str, title: str) -> go.Figure:
    """The loss of every model, mean over seeds, but for the untrained one's, which would flatten
    the rest; whiskers from the lowest seed to the highest.
    """
    drawn = style.figure(title, _LOSS, height=340)
    trained = curve[curve["tokens"] > 0]
    for dash, (run, of_run) in zip(
        cycle(style.DASHES), trained.groupby("run", sort=False), strict=False
    ):
        for colour, name in zip(cycle(style.DEPLOYMENT_COLOURS), models, strict=False):
            own = of_run[of_run["model"] == name].groupby("tokens")
            loss = own["held_out_loss"]
            if not len(loss):
                continue
            low, mean, high = (loss.agg(how).to_numpy(float) for how in ("min", "mean", "max"))
            drawn.add_scatter(
                x=own[column].mean().to_numpy(float),
                y=mean,
                error_y=whiskers(mean, low, high, thickness=1.2, width=3),
                name=html.escape(name, quote=False),
                line={"color": colour, "dash": dash, "width": 2},
                mode="lines+markers",
                hovertemplate=f"%{{y:.3f}} nats at %{{x:,.4~g}}, {run}",
            )
    return drawn
