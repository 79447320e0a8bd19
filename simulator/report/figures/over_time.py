"""Quantities over the time of a run, thinned here so that a long run does not bloat the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.base.findings import Finding
from simulator.base.formats import seconds, time_axis
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_curve, add_moves, find_metric, find_values
from simulator.results.folder import Results
from simulator.results.run_sentences import (
    SCALES,
    describe_change,
    describe_move,
    is_scaled,
    list_changes,
    list_held,
)
from simulator.results.tables import ReplicasChanged

MAX_BINS = 150
Array = NDArray[np.float64]
Bins: TypeAlias = tuple[Array, Array | None]
"""Mean of a quantity in each bin, and the most that it reaches; ``None`` for a rate, which has no
value at a moment."""


def _begin(last_s: float, y: str, what: str = "") -> tuple[go.Figure, float, str]:
    """An empty figure over the time of a run, the seconds of a unit of its axis, and the unit.

    Args:
        what: said behind the axis' title.
    """
    unit_s, unit = time_axis(last_s)
    drawn = style.figure(f"Time since the first arrival{what} ({unit})", y, 260)
    drawn.update_yaxes(nticks=6)
    return drawn.update_xaxes(range=[0, last_s / unit_s]), unit_s, unit


def draw_over_time(
    results: Results, y: str, in_bins: Callable[[Columns, str, Array], Bins], hover: str
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
    drawn, unit_s, unit = _begin(last_s, y, f", bins of {seconds(float(edges_s[1]))}")
    if any(_list_losses(results, name) for name in results.deployments):
        changes = "<br>dotted: a replica loses GPUs, dashed: it has them again"
        drawn.update_xaxes(title_text=drawn.layout.xaxis.title.text + changes)
    for name, steps in drawn_of.items():
        mean, peak = in_bins(steps, name, edges_s)
        # The bin in which the run ends is only partly covered: its mean would look like a drop.
        shown = edges_s[1:] <= end_s[name]
        shown[0] = True
        x = ((edges_s[:-1] + edges_s[1:]) / 2 / unit_s)[shown]
        mode, said = (
            "lines" if shown.sum() > 12 else "lines+markers",
            f"{hover} at %{{x:.3~g}} {unit}",
        )
        add_curve(drawn, results, name, said, x=x, y=mean[shown], mode=mode)
        if peak is not None:
            add_curve(drawn, results, name, f"{hover} at most", is_beside=True, x=x, y=peak[shown])
    _mark_changes(drawn, results, unit_s)
    return drawn.update_yaxes(rangemode="tozero")


def _mark_changes(drawn: go.Figure, results: Results, unit_s: float) -> None:
    """Lines where replicas lose GPUs (dotted) or get them back (dashed), in their deployment's
    colour.
    """
    label = style.labels(results)
    top = max(float(np.nanmax(trace.y)) for trace in drawn.data)
    for name in results.deployments:
        for change in _list_losses(results, name):
            at = change.at_s / unit_s
            line = {"width": 1.2, "dash": "dash" if change.starts else "dot"}
            said = f"{describe_change(change)}<extra>{label[name]}</extra>"
            add_curve(
                drawn, results, name, said, line=line, x=[at, at], y=[0.0, top], showlegend=False
            )


def _list_losses(results: Results, name: str) -> list[ReplicasChanged]:
    """List the changes by which replicas lose GPUs or get them back."""
    changes = list_changes(results.facts(name))
    return [change for change in changes if change.kind not in (*SCALES, "evacuates")]


class Throughput(Figure[Results]):
    """Tokens counted where the engine finished them."""

    title = "Output throughput"
    section = "Over time"
    definition = (
        "Output tokens per second of the whole deployment: first tokens, and those of decode "
        "steps, spread over the steps; mean of each bin."
    )
    absent = "No step was run."
    order = 30

    def draw(self, results: Results) -> go.Figure | None:
        def count(steps: Columns, name: str, edges_s: Array) -> Bins:
            took_s = steps["duration_s"].where(steps["duration_s"] > 0)
            rate = (steps["decode_tokens"] / took_s).fillna(0.0).to_numpy(float)
            first_s = results.requests[name]["first_token_s"].dropna().to_numpy()
            first = np.histogram(first_s, edges_s)[0] / np.diff(edges_s)
            return mean_in_bins(steps, rate, edges_s) + first, None

        return draw_over_time(results, "Output throughput (token/s)", count, "%{y:,.4~r} token/s")

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, "figure.throughput", "output_tokens_per_s")


class _Level(Figure[Results]):
    """Mean and peak of a step's column in each bin."""

    section = "Over time"
    absent = "No step was run."
    column: str
    y: str
    """Title of the vertical axis."""
    hover: str
    kind: str
    """Kind of its finding."""
    is_mean = False
    """Whether the mean over replicas is taken, which are else added up."""

    def draw(self, results: Results) -> go.Figure | None:
        def in_bins(steps: Columns, _: str, edges_s: Array) -> Bins:
            replicas = max(steps["replica"].nunique(), 1) if self.is_mean else 1
            level = steps[self.column].to_numpy(float) / replicas
            return mean_in_bins(steps, level, edges_s), peak_in_bins(steps, level, edges_s)

        return draw_over_time(results, self.y, in_bins, self.hover)

    def find(self, results: Results) -> Finding | None:
        peaks = {name: steps[self.column].max() for name, steps in results.steps.items()}
        return find_values(results, self.kind, peaks)


class Waiting(_Level):
    """Mean and peak in each bin, replicas added up."""

    title = "Queue length"
    definition = (
        "Requests queued for KV blocks or their first chunk, all replicas together; "
        "mean and, thin, most in each bin."
    )
    order = 31
    column, y, hover = "waiting", "Waiting (requests)", "%{y:,.3~r} waiting"
    kind = "figure.queue"

    def draw(self, results: Results) -> go.Figure | None:
        waits = any(steps["waiting"].max() for steps in results.steps.values())
        return super().draw(results) if waits else None


class Running(_Level):
    """Mean and peak in each bin, replicas added up."""

    title = "Requests in flight"
    definition = (
        "Requests holding KV blocks, all replicas together: the batch that shares a step; "
        "mean and, thin, most in each bin."
    )
    order = 32
    column, y, hover = "running", "Running (requests)", "%{y:,.3~r} running"
    kind = "figure.in_flight"


class KvCache(_Level):
    """Mean and peak in each bin, mean over replicas: one between steps holds nothing."""

    title = "KV cache in use"
    definition = (
        "Share of KV blocks in use, mean over ranks and replicas; mean and, thin, most in each "
        "bin. Where it reaches 100 %, requests wait or are preempted."
    )
    order = 33
    column, y, hover = "kv_used", "Share of KV blocks in use", "%{y:.1%} in use"
    kind, is_mean = "figure.kv_cache", True

    def draw(self, results: Results) -> go.Figure | None:
        drawn = super().draw(results)
        return None if drawn is None else drawn.update_yaxes(tickformat=".2~%")

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, self.kind, "kv_used_max")


class Balance(Figure[Results]):
    """A curve a deployment, what chance alone would come to, and a line where experts moved."""

    title = "Load imbalance over time"
    section = "Over time"
    definition = (
        "Token-expert pairs on the busiest rank over the mean rank, as a mean over layers and the "
        "steps of each bin; 1.0 is even. Thin: what chance alone would come to, were routing "
        "uniform at the same batches. Dotted: experts moved."
    )
    absent = "No deployment in this run has routed experts."
    order = 34

    def draw(self, results: Results) -> go.Figure | None:
        curves = {
            name: curve
            for name in results.deployments
            if (curve := results.facts(name).get("imbalance_curve"))
        }
        if not curves:
            return None
        last_s = max(curve["at_s"][-1] for curve in curves.values())
        drawn, unit_s, unit = _begin(last_s, "Busiest rank over mean rank (ratio)")
        for name, curve in curves.items():
            at = [at_s / unit_s for at_s in curve["at_s"]]
            said = f"%{{y:.3~g}} at %{{x:.3~g}} {unit}"
            add_curve(drawn, results, name, said, x=at, y=curve["imbalance"])
            chance = {"x": at, "y": curve["uniform"], "is_beside": True}
            add_curve(drawn, results, name, "%{y:.3~g} by chance", **chance)
        levels = [value for trace in drawn.data for value in trace.y if value is not None]
        moves = {
            name: [
                (moved["at_s"] / unit_s, str(describe_move(moved)))
                for moved in results.facts(name).get("rebalances") or []
            ]
            for name in results.deployments
        }
        add_moves(drawn, results, moves, (min(levels), max(levels)))
        return drawn

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, "figure.imbalance", "load_imbalance")


class Replicas(Figure[Results]):
    """A stepped line a deployment, and a thin one of those that are held."""

    title = "Replicas over time"
    section = "Over time"
    definition = (
        "Replicas that serve; thin: those whose GPUs are held, so that they are paid for: also "
        "while they start, and while they wait for repair."
    )
    absent = "Every replica of this run serves from its beginning to its end."
    order = 35

    def draw(self, results: Results) -> go.Figure | None:
        levels = {
            name: list_held(facts)
            for name in results.deployments
            if (facts := results.facts(name)).get("changes") or is_scaled(facts)
        }
        if not levels:
            return None
        durations_s = results.summary.set_index("deployment")["duration_s"]
        last_s = max(float(durations_s[name]) for name in levels)
        drawn, unit_s, unit = _begin(last_s, "Replicas (count)")
        for name, level in levels.items():
            end_s = float(durations_s[name])
            shown = [one for one in level if one[0] <= end_s]
            shown.append((end_s, *shown[-1][1:]))
            at = [at_s / unit_s for at_s, _, _ in shown]
            for place, width, word in ((2, 1.6, "serve"), (1, 0.7, "are held")):
                add_curve(
                    drawn,
                    results,
                    name,
                    f"%{{y}} {word} from %{{x:.3~g}} {unit}",
                    line={"width": width, "shape": "hv"},
                    x=at,
                    y=[one[place] for one in shown],
                    showlegend=place == 2,
                )
        return drawn.update_yaxes(rangemode="tozero")


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
