"""Curves: distributions over requests, and quantities over time, thinned here so that a long run
does not bloat the page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.report import style
from simulator.results.folder import Results
from simulator.results.formats import seconds, time_axis, time_ticks
from simulator.results.run_sentences import SCALES, describe_change

NUM_QUANTILES = 300
MAX_BINS = 150

Array = NDArray[np.float64]


Bins: TypeAlias = tuple[Array, Array | None]
"""Mean of a quantity in each bin, and the most that it reaches; ``None`` for a rate, which has no
value at a moment."""


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


def draw_distribution(
    results: Results, measure: Callable[[Columns], Array], what: str, target: str
) -> go.Figure | None:
    """The share of judged requests whose latency is at most ``x``, a curve a deployment.

    Args:
        measure: seconds of each request.
        what: short name of the latency.
        target: key of the latency target, which is drawn as a line.
    """
    every = {name: measure(results.select_judged(name)) for name in results.requests}
    defined = {
        name: found for name, value in every.items() if len(found := value[np.isfinite(value)])
    }
    if not defined:
        return None
    target_s = (results.run.get("slo") or {}).get(target)
    pooled = np.concatenate(list(defined.values()))
    ends = [pooled.min(), pooled.max(), *([] if target_s is None else [target_s])]
    low, high = float(min(ends)), float(max(ends))
    is_log = low > 0 and high > 8 * low
    # Over decades no unit suits all ticks, so each has its own.
    unit_s, unit = (1.0, "s") if is_log else time_axis(float(np.quantile(pooled, 0.9)))
    drawn = style.figure(f"{what} ({'time' if is_log else unit})", "Requests within it (share)")
    label, line = style.labels(results), style.lines(results)
    for name, value in defined.items():
        x, share = quantiles(value)
        drawn.add_scatter(
            x=x / unit_s,
            y=share,
            customdata=[seconds(float(time_s)) for time_s in x],
            name=label[name],
            line=line[name] | {"shape": "hv"},
            mode="lines",
            hovertemplate="%{y:.1%} of requests within %{customdata}",
        )
    if is_log:
        edges = [np.log10(low) - 0.05, np.log10(high) + 0.1]
        drawn.update_xaxes(type="log", range=edges, **time_ticks(low * 0.9, high * 1.25))
    else:
        pad = 0.05 * (high - low or high or 1.0)
        drawn.update_xaxes(
            range=[max(low - pad, 0) / unit_s, (high + pad) / unit_s], tickformat=",~r", nticks=7
        )
    drawn.update_yaxes(range=[0, 1.02], tickformat=".0%")
    if target_s is not None:
        _target_line(drawn, target_s / unit_s, f"target {seconds(target_s)}")
    return drawn


def _target_line(drawn: go.Figure, x: float, text: str) -> None:
    left, right = drawn.layout.xaxis.range
    along = ((np.log10(x) if drawn.layout.xaxis.type == "log" else x) - left) / (right - left)
    side = "left" if along > 0.8 else "right" if along < 0.2 else "center"
    line = {"color": style.MUTED, "dash": "dot", "width": 1.5}
    drawn.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=line)
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


def draw_over_time(
    results: Results,
    y: str,
    in_bins: Callable[[Columns, str, Array], Bins],
    hover: str,
    height: int = 260,
) -> go.Figure | None:
    """A quantity over time, a curve a deployment that ends where the deployment does, and a thin
    one of its peaks.

    Args:
        y: title of the vertical axis.
        in_bins: the quantity in each bin, by a deployment's steps, its name and the bins' edges.
        hover: Plotly's template for the value.
    """
    drawn_of = {name: steps for name, steps in results.steps.items() if len(steps)}
    if not drawn_of:
        return None
    end_s = {
        name: float((steps["start_s"] + steps["duration_s"]).max())
        for name, steps in drawn_of.items()
    }
    last_s = max(end_s.values())
    # Bins hold a few steps each, or a short run would show its steps as spikes.
    num_bins = int(np.clip(max(map(len, drawn_of.values())) // 3, 1, MAX_BINS))
    edges_s = np.linspace(0, last_s, num_bins + 1)
    unit_s, unit = time_axis(last_s)
    width = seconds(float(edges_s[1]))
    has_changes = any(_list_losses(results, name) for name in results.deployments)
    changes = "<br>dotted: a replica loses GPUs, dashed: it has them again" if has_changes else ""
    drawn = style.figure(
        f"Time since the first arrival, bins of {width} ({unit}){changes}", y, height
    )
    label, line = style.labels(results), style.lines(results)
    for name, steps in drawn_of.items():
        mean, peak = in_bins(steps, name, edges_s)
        # The bin in which the run ends is only partly covered: its mean would look like a drop.
        shown = edges_s[1:] <= end_s[name]
        shown[0] = True
        middles = ((edges_s[:-1] + edges_s[1:]) / 2 / unit_s)[shown]
        common = {"x": middles, "name": label[name]}
        drawn.add_scatter(
            **common,
            y=mean[shown],
            line=line[name] | {"width": 1.6},
            mode="lines" if shown.sum() > 12 else "lines+markers",
            hovertemplate=f"{hover} at %{{x:.3~g}} {unit}",
        )
        if peak is not None:
            drawn.add_scatter(
                **common,
                y=peak[shown],
                line=line[name] | {"width": 0.7},
                opacity=0.65,
                mode="lines",
                showlegend=False,
                hovertemplate=f"{hover} at most",
            )
    _mark_changes(drawn, results, unit_s)
    drawn.update_yaxes(rangemode="tozero", nticks=6)
    drawn.update_xaxes(range=[0, last_s / unit_s])
    return drawn


def _mark_changes(drawn: go.Figure, results: Results, unit_s: float) -> None:
    """Lines where replicas lose GPUs (dotted) or get them back (dashed), in their deployment's
    colour.
    """
    label, line = style.labels(results), style.lines(results)
    top = max(float(np.nanmax(trace.y)) for trace in drawn.data)
    for name in results.deployments:
        for change in _list_losses(results, name):
            at = float(change["at_s"]) / unit_s
            drawn.add_scatter(
                x=[at, at],
                y=[0.0, top],
                name=label[name],
                line=line[name] | {"width": 1.2, "dash": "dash" if change["starts"] else "dot"},
                mode="lines",
                showlegend=False,
                hovertemplate=f"{describe_change(change)}<extra>{label[name]}</extra>",
            )


def _list_losses(results: Results, name: str) -> list[dict[str, Any]]:
    """List the changes by which replicas lose GPUs or get them back."""
    changes = style.facts(results, name).get("changes") or []
    return [change for change in changes if change.get("kind") not in (*SCALES, "evacuates")]


def draw_level(
    results: Results, column: str, y: str, hover: str, is_mean: bool = False
) -> go.Figure | None:
    """Mean and peak of a step's column over time.

    Args:
        is_mean: take the mean over replicas, which are else added up.
    """

    def in_bins(steps: Columns, _: str, edges_s: Array) -> Bins:
        replicas = max(steps["replica"].nunique(), 1) if is_mean else 1
        level = steps[column].to_numpy(float) / replicas
        return mean_in_bins(steps, level, edges_s), peak_in_bins(steps, level, edges_s)

    return draw_over_time(results, y, in_bins, hover)


def peak_in_bins(steps: Columns, value: Array, edges_s: Array) -> Array:
    """The most that something reaches in each bin, replicas added up, of which there is a value a
    step; a replica between steps counts as zero.

    >>> import pandas as pd
    >>> times = {"start_s": [0.0, 2.0], "duration_s": [1.0, 2.0]}
    >>> steps = pd.DataFrame({"replica": [0, 0], **times})
    >>> peak_in_bins(steps, np.array([4.0, 6.0]), np.array([0.0, 0.5, 1.5, 2.0, 4.0]))
    array([4., 4., 0., 6.])
    """
    start_s = steps["start_s"].to_numpy(float)
    end_s = start_s + steps["duration_s"].to_numpy(float)
    times_s = np.r_[end_s, start_s]  # at one instant what ends comes before what begins
    order = np.argsort(times_s, kind="stable")
    times_s = times_s[order]
    level: Array = np.cumsum(np.r_[-value, value][order])
    places = np.asarray(np.searchsorted(edges_s, times_s, "right") - 1)
    # What goes on when a bin begins counts, unless it ends at that very moment.
    before = np.searchsorted(times_s, edges_s[:-1], "right") - 1
    peak = np.where(before >= 0, level[before], 0.0)
    inside = (places >= 0) & (places < len(peak))
    np.maximum.at(peak, places[inside], level[inside])
    return np.maximum(peak, 0.0)


def mean_in_bins(steps: Columns, value: Array, edges_s: Array) -> Array:
    """Mean over time of something in each bin, replicas added up, of which there is a value a step;
    a replica between steps counts as zero.

    >>> import pandas as pd
    >>> times = {"start_s": [0.0, 2.0], "duration_s": [1.0, 2.0]}
    >>> steps = pd.DataFrame({"replica": [0, 0], **times})
    >>> mean_in_bins(steps, np.array([4.0, 6.0]), np.array([0.0, 2.0, 4.0]))
    array([2., 6.])
    """
    total = np.zeros(len(edges_s) - 1)
    replicas = steps["replica"].to_numpy()
    begun_s, took_s = (steps[name].to_numpy(float) for name in ("start_s", "duration_s"))
    for replica in np.unique(replicas):
        own = np.flatnonzero(replicas == replica)
        own = own[np.argsort(begun_s[own])]
        start_s, duration_s = begun_s[own], took_s[own]
        area = np.cumsum(duration_s * value[own])
        # The running integral is flat between steps and rises evenly within one.
        times_s = np.c_[start_s, start_s + duration_s].ravel()
        integral = np.c_[np.r_[0.0, area[:-1]], area].ravel()
        total += np.diff(np.interp(edges_s, times_s, integral, left=0.0))
    return total / np.diff(edges_s)
