"""Steps: where their time goes, rank by rank, what ranks send each other, and what they hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from simulator.base.findings import Finding
from simulator.base.formats import bytes_axis, num_bytes, number, seconds, time_axis
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import (
    WHICH,
    add_bars,
    cut_to_layers,
    draw_axes,
    draw_stacked,
    find_metric,
    find_values,
    heading,
    integer_axes,
    shared_heading,
)
from simulator.results.derived.token_time import KINDS
from simulator.results.folder import Results
from simulator.results.phases import STEP_PHASES

_KIND_COLOURS = dict(zip(KINDS, ("#332288", "#882255", "#DDCC77", "#BBBBBB"), strict=True))


class TokenTime(Figure[Results]):
    """Two stacked bars a deployment: by what ranks do, and by what steps compute."""

    title = "An output token"
    section = "Where a step's time goes"
    definition = (
        "Seconds of an output token, mean over all but each request's first: by what a rank was "
        "doing, and by what the steps computed: output tokens only (decode), prompts beside them "
        "(mixed), or prompts while requests with tokens to come waited (prefill); 'cut' are steps "
        "that were cut off when their replica stopped. 'outside' is the "
        "way of a cache from the prefill pool into a step of the decode pool."
    )
    absent = "No request has more than one output token."
    order = 69

    def draw(self, results: Results) -> dict[str, go.Figure]:
        table = results.frame("token_time")
        names = [name for name in results.deployments if name in set(table["deployment"])]
        if not names:
            return {}
        by_kind = table.pivot_table("token_s", "deployment", "kind", aggfunc="sum")
        by_kind = by_kind.reindex(names, columns=list(KINDS)).fillna(0.0)
        by_phase = table.groupby("deployment")[[f"{phase}_s" for phase in STEP_PHASES]].sum()
        by_phase = by_phase.loc[names].rename(columns=lambda column: column.removesuffix("_s"))
        unit_s, unit = time_axis(float(by_kind.sum(axis=1).max()))
        colours, title = style.PHASE_COLOURS | _KIND_COLOURS, f"Time of an output token ({unit})"
        return {
            heading: draw_stacked(results, parts, colours, title, seconds, unit_s)
            for heading, parts in (
                ("By what ranks do", by_phase),
                ("By what steps compute", by_kind),
            )
        }

    def find(self, results: Results) -> Finding | None:
        token_s = results.frame("token_time").groupby("deployment")["token_s"].sum()
        return find_values(results, "figure.token", token_s)


class StepShares(Figure[Results]):
    """A stacked bar a deployment."""

    title = "All steps of the run"
    section = "Where a step's time goes"
    definition = (
        "Share of step time along the critical path; 'wait' is the slowest rank's time beyond the "
        "mean, 'dispatch' and 'combine' the two all-to-alls, 'collective' the tensor-parallel "
        "all-reduces and, in a pipeline, the way to the next stage."
    )
    absent = "No step was run."
    order = 70
    width = "full"

    def draw(self, results: Results) -> go.Figure | None:
        columns = {f"{phase}_share": phase for phase in STEP_PHASES}
        shares = results.summary.set_index("deployment").reindex(columns=list(columns))
        shares = shares.rename(columns=columns).dropna(how="all").fillna(0.0)
        if shares.empty:
            return None
        drawn = draw_stacked(results, shares, style.PHASE_COLOURS, "Share of step time", _percent)
        return drawn.update_xaxes(**style.SHARE_TICKS)

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, "figure.wait", "wait_share")


def _percent(share: float) -> str:
    return f"{number(round(100 * share, 1))} %"


class StepParts(Figure[Results]):
    """A stacked bar a deployment, a plot a phase."""

    title = "One step"
    section = "Where a step's time goes"
    definition = (
        "Time of one decode step and one prefill step by what a rank was doing, mean over ranks. "
        f"{WHICH} Deployments' steps need not hold equally many tokens."
    )
    absent = "The run holds no timeline of single steps."
    order = 71

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for phase, spans in results.spans.groupby("phase", sort=False):
            total_s = spans.pivot_table(
                index="deployment", columns="name", values="duration_s", aggfunc="sum", sort=False
            )
            num_ranks = spans.groupby("deployment")["rank"].nunique()
            names = [name for name in results.deployments if name in total_s.index]
            mean_s = total_s.div(num_ranks, axis=0).reindex(names, columns=list(STEP_PHASES))
            mean_s = mean_s.fillna(0.0)
            unit_s, unit = time_axis(float(mean_s.sum(axis=1).max()))
            title = f"{str(phase).capitalize()} step ({unit})"
            plots[shared_heading(results, names, str(phase))] = draw_stacked(
                results, mean_s, style.PHASE_COLOURS, title, seconds, unit_s
            )
        return plots

    def find(self, results: Results) -> Finding | None:
        spans = results.spans[results.spans["phase"] == "decode"]
        took_s = spans.groupby("deployment")["duration_s"].sum()
        waits_s = spans[spans["name"] == "wait"].groupby("deployment")["duration_s"].sum()
        return find_values(results, "figure.decode_wait", (waits_s / took_s))


class Timeline(Figure[Results]):
    """Bars in time, a row a rank, a plot a deployment: the first layers of its decode step."""

    title = "Timeline of a decode step"
    section = "One step, rank by rank"
    definition = (
        "What each rank does at the start of one decode step; "
        "timeline.json beside this page holds every rank and layer and opens at ui.perfetto.dev. "
        f"{WHICH}"
    )
    absent = "The run holds no timeline of single steps."
    order = 80
    width = "full"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        decode = results.spans[results.spans["phase"] == "decode"]
        for name, spans in decode.groupby("deployment", sort=False):
            shown, extent = cut_to_layers(spans)
            plots[f"{heading(results, str(name), 'decode')}; {extent}"] = _draw_timeline(shown)
        return plots


def _draw_timeline(spans: pd.DataFrame) -> go.Figure:
    num_ranks = spans["rank"].nunique()
    height = 80 + (22 if num_ranks <= 8 else 15) * max(num_ranks, 3)
    drawn, unit_s = draw_axes(spans, height, nticks=9, bargap=0.18)
    add_bars(drawn, spans, "rank", "rank %{y}", unit_s)
    return drawn.update_yaxes(autorange="reversed", dtick=1)


MAX_CELLS = 64
"""Ranks on a side; more are added up in equal groups."""


class Traffic(Figure[Results]):
    """Dispatch and combine side by side, a plot a deployment and phase."""

    title = "Bytes from rank to rank"
    section = "Traffic between ranks"
    definition = (
        "Bytes that each rank sends to each other rank in a mean MoE layer of one step; "
        f"what stays on a rank is no traffic. {WHICH}"
    )
    absent = "No tokens travel between ranks in this run."
    order = 60

    def draw(self, results: Results) -> dict[str, go.Figure]:
        return {
            heading(results, str(name), str(phase)): _pair(table)
            for (name, phase), table in results.traffic.groupby(["deployment", "phase"], sort=False)
        }

    def find(self, results: Results) -> Finding | None:
        ranks = results.traffic.groupby(["deployment", "phase", "source"])["num_bytes"].sum()
        return find_values(results, "figure.traffic", ranks.groupby(level=0).max())


def _pair(table: pd.DataFrame) -> go.Figure:
    num_ranks = int(table[["source", "destination"]].to_numpy().max()) + 1
    group = -(-num_ranks // MAX_CELLS)
    matrices = {
        str(direction): _matrix(part, num_ranks, group)
        for direction, part in table.groupby("direction", sort=False)
    }
    largest = max(float(np.nanmax(matrix, initial=0)) for matrix in matrices.values())
    unit_bytes, unit = bytes_axis(largest)
    titles = list(matrices)
    drawn = make_subplots(
        cols=len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06
    )
    what = "rank" if group == 1 else f"group of {group} ranks"
    whose = "rank (index)" if group == 1 else f"ranks (groups of {group})"
    for column, (direction, matrix) in enumerate(matrices.items(), start=1):
        hover = f"{what} %{{y}} to {what} %{{x}}<br>%{{z:.3~g}} {unit}<extra>{direction}</extra>"
        at = {"row": 1, "col": column}
        z = matrix / unit_bytes
        drawn.add_heatmap(z=z, coloraxis="coloraxis", hovertemplate=hover, **at)
        integer_axes(drawn, *matrix.shape, **at)
        matches = "x" if column > 1 else None
        drawn.update_xaxes(title_text=f"To {whose}", constrain="domain", matches=matches, **at)
    # Squares, so that a row and a column weigh the same.
    drawn.update_yaxes(constrain="domain", constraintoward="top")
    drawn.update_yaxes(scaleanchor="x", title_text=f"From {whose}", row=1, col=1)
    scale = {
        "colorscale": style.AMOUNT_COLOURS,
        "cmin": 0,
        "cmax": (largest or 1.0) / unit_bytes,
        "colorbar": {"title": {"text": unit}},
    }
    drawn.update_layout(
        height=310, meta={"width_factor": 0.5, "plus": 30}, margin_t=30, coloraxis=scale
    )
    drawn.update_annotations(font_size=12)
    return drawn


def _matrix(part: pd.DataFrame, num_ranks: int, group: int) -> NDArray[np.float64]:
    sent = np.zeros((-(-num_ranks // group),) * 2)
    places = (part["source"].to_numpy(int) // group, part["destination"].to_numpy(int) // group)
    np.add.at(sent, places, part["num_bytes"].to_numpy(float))
    if group == 1:
        np.fill_diagonal(sent, np.nan)
    return sent


_PARTS = {
    "weights_bytes": "weights",
    "module_bytes": "drafting module",
    "kv_bytes": "KV cache",
    "reserve_bytes": "reserve",
}


class Memory(Figure[Results]):
    """A stacked bar a deployment."""

    title = "Memory of one accelerator"
    section = "Memory"
    definition = (
        "Bytes per accelerator that hold weights, that are left for the KV cache (how many "
        "requests fit), and that are kept in reserve."
    )
    absent = "The run does not say what its memory holds."
    order = 90
    width = "full"

    def draw(self, results: Results) -> go.Figure | None:
        held = {name: results.facts(name).get("memory") for name in results.deployments}
        memory = {name: table for name, table in held.items() if table}
        if not memory:
            return None
        sizes = pd.DataFrame.from_dict(memory, orient="index").reindex(columns=list(_PARTS))
        sizes = sizes.rename(columns=_PARTS).astype(float).fillna(0.0)
        unit_bytes, unit = bytes_axis(float(sizes.sum(axis=1).max()))
        title = f"Memory of one accelerator ({unit})"
        return draw_stacked(results, sizes, style.MEMORY_COLOURS, title, num_bytes, unit_bytes)

    def find(self, results: Results) -> Finding | None:
        held = {name: results.facts(name).get("memory") for name in results.deployments}
        left = {name: table["kv_bytes"] for name, table in held.items() if table}
        return find_values(results, "figure.memory", left)
