"""Bars in time: what ranks did, cut to what a plot can show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.results.formats import seconds
from simulator.results.tables import STEP_PHASES

MAX_RANKS = 16
MAX_BARS = 400


def first_layers(spans: pd.DataFrame, max_bars: int = MAX_BARS) -> tuple[pd.DataFrame, str]:
    """As many of the first layers as fit in ``max_bars``, of at most ``MAX_RANKS`` ranks; and the
    words for what that is.
    """
    ranks = np.sort(spans["rank"].unique())
    on_ranks = spans[spans["rank"].isin(ranks[:MAX_RANKS])]
    layers = np.sort(on_ranks.loc[on_ranks["layer"] >= 0, "layer"].unique())
    bars_up_to = on_ranks[on_ranks["layer"] >= 0].groupby("layer").size().cumsum()
    num_layers = max(int((bars_up_to <= max_bars).sum()), min(len(layers), 1))
    in_layers = on_ranks[on_ranks["layer"].isin(layers[:num_layers])] if len(layers) else on_ranks
    # What belongs to no layer (such as the engine's own time) is shown where it falls in the
    # window.
    end_s = float((in_layers["start_s"] + in_layers["duration_s"]).max())
    whole = on_ranks[(on_ranks["layer"] < 0) & (on_ranks["start_s"] < end_s)]
    shown = pd.concat([in_layers, whole]) if len(layers) and len(whole) else in_layers
    of_ranks = f"{min(len(ranks), MAX_RANKS)} of {len(ranks)} ranks"
    return shown, f"first {num_layers} of {len(layers)} layers, {of_ranks}" if len(
        layers
    ) else of_ranks


def window_s(spans: pd.DataFrame) -> tuple[float, float]:
    """Begin and end of what a plot shows.

    What comes before the first layer (the engine's own time) is the same on all ranks: it is cut
    rather than let it fill the plot.
    """
    end_s = float((spans["start_s"] + spans["duration_s"]).max())
    first_s = (
        float(spans.loc[spans["layer"] >= 0, "start_s"].min())
        if (spans["layer"] >= 0).any()
        else 0.0
    )
    return max(0.0, first_s - 0.08 * (end_s - first_s)), end_s


def add_bars(
    drawn: go.Figure,
    spans: pd.DataFrame,
    row: str,
    extra: str,
    unit_s: float,
    thickness: float | None = None,
) -> None:
    """Add a bar a span, a trace a phase.

    Args:
        row: column with the bar's place on the vertical axis.
        extra: what the hover says beside the bar.
        unit_s: seconds of a unit of the horizontal axis.
        thickness: of a bar, where rows are not evenly spaced.
    """
    for phase in STEP_PHASES:
        part = spans[spans["name"] == phase]
        if part.empty:
            continue
        layer = ["whole step" if i < 0 else f"layer {i}" for i in part["layer"]]
        drawn.add_bar(
            orientation="h",
            y=part[row].to_numpy(),
            base=(part["start_s"] / unit_s).to_numpy(np.float32),
            x=(part["duration_s"] / unit_s).to_numpy(np.float32),
            name=phase,
            width=thickness,
            marker={"color": style.PHASE_COLOURS[phase], "line": {"width": 0}},
            customdata=list(
                zip(
                    layer,
                    map(seconds, part["duration_s"]),
                    map(seconds, part["start_s"]),
                    strict=True,
                )
            ),
            hovertemplate=(
                f"{phase}, %{{customdata[0]}}: %{{customdata[1]}} from "
                f"%{{customdata[2]}}<extra>{extra}</extra>"
            ),
        )
