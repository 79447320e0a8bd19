"""Latencies: distributions over requests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.columns import Columns, Picked
from simulator.base.findings import Finding
from simulator.base.formats import seconds, time_axis, time_ticks
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_curve, find_metric
from simulator.results.folder import Results
from simulator.results.metrics import measure_ttft

NUM_QUANTILES = 300

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
    drawn = style.figure(what if is_log else f"{what} ({unit})", "Share of requests")
    for name, value in defined.items():
        x, share = quantiles(value)
        add_curve(
            drawn,
            results,
            name,
            "%{y:.1%} of requests within %{customdata}",
            line={"width": 2, "shape": "hv"},
            x=x / unit_s,
            y=share,
            customdata=[seconds(float(time_s)) for time_s in x],
        )
    if is_log:
        edges = [np.log10(low) - 0.05, np.log10(high) + 0.1]
        drawn.update_xaxes(type="log", range=edges, **time_ticks(low * 0.9, high * 1.25))
    else:
        pad = 0.05 * (high - low or high or 1.0)
        drawn.update_xaxes(
            range=[max(low - pad, 0) / unit_s, (high + pad) / unit_s], tickformat=",~r", nticks=7
        )
    drawn.update_yaxes(range=[0, 1.02], **style.SHARE_TICKS)
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


class Ttft(Figure[Results]):
    """The cumulative distribution, a curve a deployment, with the target."""

    title = "Time to first token"
    section = "Latency"
    definition = (
        "Share of requests whose time to first token (arrival to first output token, "
        "queueing included) is at most x."
    )
    absent = "No request finished."
    order = 20

    def draw(self, results: Results) -> go.Figure | None:
        return draw_distribution(
            results, lambda requests: measure_ttft(requests).to_numpy(float), "TTFT", "ttft_s"
        )

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, "figure.ttft", "ttft_p90_s")


class Tpot(Figure[Results]):
    """The cumulative distribution, a curve a deployment, with the target."""

    title = "Time per output token"
    section = "Latency"
    definition = (
        "Share of requests whose time per output token, (E2E - TTFT) "
        "/ (output tokens - 1), is at most x."
    )
    absent = "No request has two output tokens, so time per output token is undefined."
    order = 21

    def draw(self, results: Results) -> go.Figure | None:
        return draw_distribution(results, _tpot_s, "TPOT", "tpot_s")

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, "figure.tpot", "tpot_p90_s")


def _tpot_s(requests: Columns) -> Array:
    several = Picked(requests, (requests["num_output"] > 1).to_numpy())
    decoding_s = several["finish_s"] - several["first_token_s"]
    return (decoding_s / (several["num_output"] - 1)).to_numpy(float)
