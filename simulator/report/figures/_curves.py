"""Curves: distributions over requests, and quantities over time, thinned here so that a long run
does not bloat the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.report import style
from simulator.results.folder import Results
from simulator.results.formats import seconds, time_axis

NUM_QUANTILES = 300
MAX_BINS = 150

Array = NDArray[np.float64]


def quantiles(values: Array) -> tuple[Array, Array]:
    """Points of the cumulative distribution: all of them where they are few, else evenly spaced
    ones with more at the tail.

    >>> quantiles(np.array([2.0, 1.0]))
    (array([1., 1., 2.]), array([0. , 0.5, 1. ]))
    """
    ordered = np.sort(values)
    if len(ordered) <= NUM_QUANTILES:
        return np.r_[ordered[0], ordered], np.arange(len(ordered) + 1) / len(ordered)
    share = np.unique(np.r_[np.linspace(0, 1, NUM_QUANTILES), np.linspace(0.98, 1, 60)])
    return np.quantile(ordered, share), share


def distribution(
    results: Results, values: Mapping[str, Array], what: str, target_s: float | None
) -> go.Figure | None:
    """The share of requests whose latency is at most ``x``, a curve a deployment.

    Args:
        values: seconds, by deployment.
        what: short name of the latency.
        target_s: the latency target, drawn as a line.
    """
    defined = {name: value[np.isfinite(value)] for name, value in values.items()}
    defined = {name: value for name, value in defined.items() if len(value)}
    if not defined:
        return None
    pooled = np.concatenate(list(defined.values()))
    unit_s, unit = time_axis(float(np.quantile(pooled, 0.9)))
    drawn = style.figure(f"{what} ({unit})", "Requests within it (share)")
    label, line = style.labels(results), style.lines(results)
    for name, value in defined.items():
        x, share = quantiles(value)
        drawn.add_scatter(
            x=np.float32(x / unit_s),
            y=np.float32(share),
            name=label[name],
            line=line[name] | {"shape": "hv"},
            mode="lines",
            hovertemplate=f"%{{y:.1%}} of requests within %{{x:.4~g}} {unit}",
        )
    low, high = float(pooled.min()), float(pooled.max())
    if target_s is not None:
        low, high = min(low, target_s), max(high, target_s)
    if low > 0 and high > 8 * low:
        drawn.update_xaxes(
            type="log", range=[np.log10(low / unit_s) - 0.05, np.log10(high / unit_s) + 0.1]
        )
        drawn.update_xaxes(
            **_ticks(low / unit_s, high / unit_s)
            if high < 2000 * low
            else {"dtick": 1, "tickformat": ",~r"}
        )
    else:
        pad = 0.05 * (high - low or high or 1.0)
        drawn.update_xaxes(
            range=[max(low - pad, 0) / unit_s, (high + pad) / unit_s], tickformat=",~r", nticks=7
        )
    drawn.update_yaxes(range=[0, 1.02], tickformat=".0%")
    if target_s is not None:
        _target_line(drawn, target_s / unit_s, f"target {seconds(target_s)}")
    return drawn


def _ticks(low: float, high: float) -> dict[str, object]:
    """Round ticks within the decades, few enough for a phone: Plotly's own leave the 2 and 5 as
    bare digits.
    """
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    values = [
        step * 10.0**decade
        for decade in decades
        for step in ((1, 2, 5) if high < 30 * low else (1, 3))
    ]
    return {"tickvals": values, "ticktext": [f"{value:,.10g}" for value in values]}


def _target_line(drawn: go.Figure, x: float, text: str) -> None:
    left, right = drawn.layout.xaxis.range
    along = ((np.log10(x) if drawn.layout.xaxis.type == "log" else x) - left) / (right - left)
    side = "left" if along > 0.8 else "right" if along < 0.2 else "center"
    drawn.add_shape(
        type="line",
        x0=x,
        x1=x,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": style.MUTED, "dash": "dot", "width": 1.5},
    )
    # A shape takes a value on a logarithmic axis, an annotation its logarithm: a trace at the same
    # place avoids the difference.
    drawn.add_scatter(
        x=[x],
        y=[1.02],
        mode="text",
        text=[text],
        textposition=f"top {side}",
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )
    drawn.update_layout(margin_t=26)


def over_time(
    results: Results,
    y: str,
    in_bins: Callable[[pd.DataFrame, str, Array], Array],
    hover: str,
    height: int = 260,
) -> go.Figure | None:
    """A quantity over time, a curve a deployment that ends where the deployment does.

    Args:
        y: title of the vertical axis.
        in_bins: of a deployment's steps, its name and the bins' edges: the mean of the quantity in
            each bin.
        hover: Plotly's template for the value.
    """
    steps = results.steps
    if steps.empty:
        return None
    end_s = (steps["start_s"] + steps["duration_s"]).groupby(steps["deployment"]).max()
    # Bins hold a few steps each, or a short run would show its steps as spikes.
    num_bins = int(np.clip(steps.groupby("deployment").size().max() // 3, 1, MAX_BINS))
    edges_s = np.linspace(0, float(end_s.max()), num_bins + 1)
    unit_s, unit = time_axis(float(end_s.max()))
    drawn = style.figure(f"Time since the first arrival ({unit})", y, height)
    label, line = style.labels(results), style.lines(results)
    for name, group in steps.groupby("deployment", sort=False):
        value = in_bins(group, str(name), edges_s)
        # The bin in which the run ends is only partly covered: its mean would look like a drop.
        shown = edges_s[1:] <= float(end_s[name])
        shown[0] = True
        drawn.add_scatter(
            x=np.float32(((edges_s[:-1] + edges_s[1:]) / 2 / unit_s)[shown]),
            y=np.float32(value[shown]),
            name=label[str(name)],
            line=line[str(name)] | {"width": 1.6},
            mode="lines" if shown.sum() > 12 else "lines+markers",
            hovertemplate=f"{hover} at %{{x:.3~g}} {unit}",
        )
    drawn.update_yaxes(rangemode="tozero", nticks=6)
    drawn.update_xaxes(range=[0, float(end_s.max()) / unit_s])
    return drawn


def mean_in_bins(steps: pd.DataFrame, column: str, edges_s: Array) -> Array:
    """Mean over time of a step's column in each bin, replicas added up; a replica between steps
    counts as zero.

    >>> times = {"start_s": [0.0, 2.0], "duration_s": [1.0, 2.0]}
    >>> steps = pd.DataFrame({"replica": [0, 0], **times, "waiting": [4, 6]})
    >>> mean_in_bins(steps, "waiting", np.array([0.0, 2.0, 4.0]))
    array([2., 6.])
    """
    total = np.zeros(len(edges_s) - 1)
    for _, replica in steps.groupby("replica"):
        replica = replica.sort_values("start_s")
        start_s = replica["start_s"].to_numpy(float)
        duration_s = replica["duration_s"].to_numpy(float)
        area = np.cumsum(duration_s * replica[column].to_numpy(float))
        # The running integral is flat between steps and rises evenly within one.
        times_s = np.c_[start_s, start_s + duration_s].ravel()
        integral = np.c_[np.r_[0.0, area[:-1]], area].ravel()
        total += np.diff(np.interp(edges_s, times_s, integral, left=0.0))
    return total / np.diff(edges_s)


def events_in_bins(times_s: Array, amounts: Array, edges_s: Array) -> Array:
    """Amount a second in each bin of things that happen at moments."""
    return np.histogram(times_s, bins=edges_s, weights=amounts)[0] / np.diff(edges_s)
