"""A step of a training: its memory, phases, rate and timeline."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.base.formats import bytes_axis, num_bytes, number, percent, seconds, time_axis
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import BAR_PIXELS, add_bars, add_name, draw_stacked, find_values
from simulator.results.training import MEMORY_PARTS, PARTS, TrainingResults

_COLOURS = dict(zip(MEMORY_PARTS, ("#4477AA", "#EE6677", "#AA8811", "#66CCEE"), strict=True))


class Memory(Figure[TrainingResults]):
    """A stacked bar a deployment, and a line at what there is."""

    title = "Memory of the fullest GPU"
    section = "What it holds"
    definition = (
        "Bytes of weights, gradients, optimizer state and activations; the dotted line is the "
        "least that any of the deployments may fill."
    )
    absent = "The run does not say what its memory holds."
    order = 30
    width = "full"

    def draw(self, results: TrainingResults) -> go.Figure | None:
        held = {name: results.facts(name)["memory_bytes"] for name in results.deployments}
        table = pd.DataFrame.from_dict(held, orient="index").astype(float)
        unit_bytes, unit = bytes_axis(float(table["room"].max()))
        sizes = table[list(MEMORY_PARTS)]
        title = f"Memory of one GPU ({unit})"
        drawn = draw_stacked(results, sizes, _COLOURS, title, num_bytes, unit_bytes)
        room = float(table["room"].min()) / unit_bytes
        drawn.add_vline(x=room, line={"color": style.MUTED, "width": 1, "dash": "dot"})
        return drawn.update_xaxes(range=[0, 1.02 * float(table["room"].max()) / unit_bytes])

    def find(self, results: TrainingResults) -> Finding | None:
        held = {name: results.facts(name)["memory_bytes"] for name in results.deployments}
        parts = {name: sum(sizes[part] for part in MEMORY_PARTS) for name, sizes in held.items()}
        return find_values(results, "figure.held", parts)


COLOURS = dict(
    zip(
        PARTS,
        (
            "#4477AA",
            "#66CCEE",
            "#228833",
            "#AA8811",
            "#EECC66",
            "#EE6677",
            "#AA3377",
            "#DD9944",
            "#667788",
            "#C5CAD1",
        ),
        strict=True,
    )
)


class Phases(Figure[TrainingResults]):
    """A stacked bar a deployment."""

    title = "Where a step's time goes"
    section = "How fast"
    definition = (
        "Shares of a step, mean over GPUs, which add up to it: computation, exchanges, waiting "
        "for the ranks with the busiest experts, gradients, optimizer, and the pipeline's bubble."
    )
    absent = "The run does not say what its steps consist of."
    order = 20
    width = "full"

    def draw(self, results: TrainingResults) -> go.Figure | None:
        parts = {name: results.facts(name)["parts_s"] for name in results.deployments}
        table = pd.DataFrame.from_dict(parts, orient="index")[list(PARTS)].astype(float)
        shares = table.div(table.sum(axis=1), axis=0).clip(lower=0.0)
        return draw_stacked(results, shares, COLOURS, "Share of a step (%)", percent, 0.01)

    def find(self, results: TrainingResults) -> Finding | None:
        parts = {name: results.facts(name)["parts_s"] for name in results.deployments}
        computed = {
            name: sum(parts_s[part] for part in ("attention", "dense", "experts"))
            / sum(parts_s[part] for part in PARTS)
            for name, parts_s in parts.items()
        }
        return find_values(results, "figure.computed", computed)


class Rate(Figure[TrainingResults]):
    """A bar a deployment."""

    title = "Tokens per second of one GPU"
    section = "How fast"
    definition = "Training tokens per second of one GPU, and model FLOP/s beside them."
    absent = "The run has no rates."
    order = 10
    width = "full"

    def draw(self, results: TrainingResults) -> go.Figure | None:
        names, label, colour = results.deployments, style.labels(results), style.colours(results)
        rates = results.summary["tokens_per_s_per_gpu"].to_list()
        flops = results.summary["flops_per_s_per_gpu"].to_list()
        height = 56 + BAR_PIXELS * len(names)
        drawn = style.figure("Tokens per second of one GPU (tokens/s)", "", height, bargap=0.56)
        for place, name in enumerate(names):
            text = f"{number(rates[place])} tokens/s, {number(flops[place] / 1e12)} TFLOP/s"
            drawn.add_bar(
                orientation="h",
                y=[place],
                x=[rates[place]],
                name=label[name],
                marker={"color": colour[name]},
                text=[text],
                textposition="auto",
                textangle=0,
                hovertemplate=f"{text}<extra>{label[name]}</extra>",
                showlegend=False,
            )
            add_name(drawn, place - 0.24, label[name])
        drawn.update_layout(margin_l=12)
        drawn.update_yaxes(visible=False, range=[len(names) - 0.7, -0.75])
        return drawn.update_xaxes(rangemode="tozero", range=[0, 1.02 * max(rates)], nticks=6)

    def find(self, results: TrainingResults) -> Finding | None:
        rates = results.summary.set_index("deployment")["tokens_per_s_per_gpu"]
        return find_values(results, "figure.trained", rates)


_COLOURS_TIMELINE = {
    "forward": "#4477AA",
    "backward": "#EE7733",
    "input": "#EECC66",
    "weight": "#AA8811",
    "both": "#228833",
    "gradients": "#AA3377",
    "optimizer": "#667788",
}
_ZOOMED_PIXELS = 232
"""Least height of a plot that the page lets readers zoom into."""
_MOST_BARS = 1200
"""Bars of a plot; of longer steps the beginning is shown."""


class Timeline(Figure[TrainingResults]):
    """Bars in time, a row a stage, a plot a deployment."""

    title = "Timeline of a step"
    section = "One step, stage by stage"
    definition = (
        "What each pipeline stage does: passes of micro-batches, then gradients and optimizer; "
        "gaps are the bubble. timeline.json beside this page opens at ui.perfetto.dev."
    )
    absent = "The run holds no timeline."
    order = 40
    width = "full"

    def draw(self, results: TrainingResults) -> dict[str, go.Figure]:
        label = style.labels(results)
        plots = {}
        for name, spans in results.spans.groupby("deployment", sort=False):
            shown = spans.sort_values("start_s").head(_MOST_BARS)
            begins = "" if len(shown) == len(spans) else f"; the first {_tell_end(shown)}"
            plots[f"{label[str(name)]}, {_tell_end(spans)}{begins}"] = _draw(shown)
        return plots


def _tell_end(spans: pd.DataFrame) -> str:
    return seconds(float((spans["start_s"] + spans["duration_s"]).max()))


def _draw(shown: pd.DataFrame) -> go.Figure:
    num_stages = int(shown["rank"].max()) + 1
    end_s = float((shown["start_s"] + shown["duration_s"]).max())
    unit_s, unit = time_axis(end_s)
    height = max(_ZOOMED_PIXELS, 90 + 26 * num_stages)
    title = f"Time since the start of the step ({unit})"
    drawn = style.figure(title, "Stage (index)", height, barmode="overlay", bargap=0.18)
    edge = {"line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"}}
    looks: dict[str, Any] = {"colours": _COLOURS_TIMELINE, "part": "micro-batch", "marker": edge}
    add_bars(drawn, shown, "rank", "stage %{y}", unit_s, **looks)
    drawn.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    return drawn.update_xaxes(range=[0, end_s / unit_s], nticks=8)
