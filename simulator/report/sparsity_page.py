"""The page of ``moesim sparsity``: from which sparsity bytes and time fall."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from simulator.base.formats import TIMES, UNDEFINED, num_bytes
from simulator.report import style
from simulator.report.gallery import Card, FigureCards
from simulator.report.rendering import Block, Section, render_blocks, show_table
from simulator.results.results_folder import Cell, TextTable
from simulator.results.sparsity import (
    PublishedPoint,
    SparseData,
    SparsityFolder,
    SparsityResults,
    SpeedCurve,
)

_SPARSITY = "Share of the weights that are gone"
_BYTES = "Bytes over those of the whole matrix"
_SPEED = "Times as fast as the whole matrix"
_KERNELS = ("two_four", "csr", "tiled_csl", "bitmap", "block", "coo", "bitmask")
"""Kernels in the order of their colours."""
_STORAGE_TEXT = (
    "Values that are kept and what says where they lie, exactly as arrays take them. Below 1 the "
    "format takes fewer bytes than the whole matrix. Lower is better."
)
_SPEED_TEXT = (
    "Time with the whole matrix over time with the pruned one; thick lines are of fewer tokens. "
    "Solid: within what was measured; dotted: beyond it. Diamonds are published: full ones are "
    "predicted without having been fitted, open ones are what a calibration rests on, or of "
    "machines without any. Above 1 is faster. Higher is better."
)
_MEASURED_TEXT = (
    "The runtime's own pruned layers on this machine's processor, in fp32 and one thread, against "
    "whole matrices timed in turn. Circles are DeepSparse's published figures of another processor "
    "and engine, whole models against its own whole ones. Higher is better."
)


_QUALITY = (
    "Perplexity on WikiText2 of models pruned at one go, without training, and mean accuracy of "
    "zero-shot tasks with fewer experts. They say nothing of other models, texts or methods: give "
    "models of a plan a score of your own."
)
_USES = {
    "compared": "compared, not fitted",
    "fitted": "a calibration rests on it",
    "shown": "shown only",
}


def render(folder: SparsityFolder) -> str:
    """The page as one HTML document that opens offline."""
    cards, results, data = FigureCards(), folder.results, folder.results.data
    shape = f"{results.out_features:,} x {results.in_features:,}"
    storage = cards.card(
        f"Bytes of a {shape} matrix in {results.dtype}", _STORAGE_TEXT, {"": _draw_storage(results)}
    )
    by_machine = {
        html.escape(machine, quote=False): _draw_speeds(own, results.published)
        for machine, own in _group_machines(results.speeds)
    }
    speeds = cards.card(f"Speed with a {shape} matrix", _SPEED_TEXT, by_machine, "half")
    measured = _draw_measured(results, cards)
    by_format, by_machines = map(show_table, folder.list_tables())
    values = (
        f"{data.rows:,} x {data.columns:,} values in {data.dtype}, of which "
        f"{100 * data.density:.1f} % are not zero: {num_bytes(data.whole_bytes)} whole."
    )
    sections = [
        Section("Storage", [Block(cards=[storage]), by_format]),
        Section("Speed", [Block(cards=[speeds]), by_machines]),
        Section("Measured on this machine", [Block(cards=measured)] if measured else []),
        Section("Sparse data", [show_table(_list_formats(data))], values),
        Section("Published speeds", [show_table(_list_published(results.published))]),
        Section(
            "What pruning costs in quality, as published",
            [show_table(_list_losses(results)), show_table(_list_reductions(results))],
            _QUALITY,
        ),
    ]
    return render_blocks("Sparse matrices", cards, folder.verdict, sections)


def _list_formats(data: SparseData) -> TextTable:
    rows = [["Format", "Bytes", "Saved", "Fewer bytes below"]]
    for name, size, density in data.formats:
        saved = f"{100 * (1 - size / data.whole_bytes):.1f} %"
        below = f"{100 * density:.1f} % not zero" if density else "never"
        rows.append([name, num_bytes(size), saved, below])
    return TextTable("Bytes of data by format", rows)


def _list_published(points: Sequence[PublishedPoint]) -> TextTable:
    titles = ["Kernels and machine", "Gone", "Published", "Predicted", "Conditions", "Use"]
    rows: list[list[str | Cell]] = [[*titles]]
    for point in points:
        predicted = Cell(UNDEFINED)
        if point.predicted is not None:
            band = f"{point.low:.2f} to {point.high:.2f}"
            predicted = Cell(f"{point.predicted:.2f}{TIMES}", band)
        gone, published = f"{100 * point.sparsity:.0f} %", f"{point.speed_up:.2f}{TIMES}"
        use = _USES[point.rests]
        rows.append([point.title, gone, published, predicted, point.conditions, use])
    return TextTable("Published speeds", rows)


def _list_losses(results: SparsityResults) -> TextTable:
    rows = [["Model", "Method", "Gone", "Whole", "Pruned", "Source"]]
    for one in results.losses:
        perplexities = f"{one.whole:.2f}", f"{one.pruned:.2f}"
        rows.append([one.model, one.method, one.pattern, *perplexities, one.source])
    return TextTable("Published perplexities", rows)


def _list_reductions(results: SparsityResults) -> TextTable:
    rows = [["Model", "Method", "Experts left", "Points lost", "Source"]]
    for one in results.reductions:
        left = f"{one.experts_left} of {one.experts}"
        rows.append([one.model, one.method, left, f"{one.points:.1f}", one.source])
    return TextTable("Published accuracies with fewer experts", rows)


def _group_machines(speeds: Sequence[SpeedCurve]) -> Iterator[tuple[str, list[SpeedCurve]]]:
    for machine in dict.fromkeys(one.machine for one in speeds):
        yield machine, [one for one in speeds if one.machine == machine]


def _draw_storage(results: SparsityResults) -> go.Figure:
    drawn = style.figure(_SPARSITY, _BYTES, height=400)
    for place, curve in enumerate(results.storage):
        drawn.add_scatter(
            x=list(curve.sparsities),
            y=list(curve.shares),
            name=html.escape(curve.format, quote=False),
            line=style.line_at(place),
            mode="lines" if len(curve.sparsities) > 1 else "markers",
            marker={"color": style.colour_at(place), "size": 10, "symbol": "diamond"},
            hovertemplate="%{y:.3f} of the whole at %{x:.0%}",
        )
    return _finish(drawn, 1.0, (0, 2))


def _draw_speeds(curves: list[SpeedCurve], points: Sequence[PublishedPoint]) -> go.Figure:
    """Draw the curves of one machine, what was published of it, and of machines without a
    calibration.
    """
    drawn = style.figure(_SPARSITY, _SPEED, height=400)
    for curve in curves:
        colour = style.colour_at(_KERNELS.index(curve.kernels))
        is_first = curve.tokens == curves[0].tokens
        kept = [curve.is_measured(at) for at in curve.sparsities]
        for is_measured in (True, False):
            if is_measured not in kept:
                continue
            drawn.add_scatter(
                x=list(curve.sparsities),
                y=[
                    speed if own is is_measured else None
                    for speed, own in zip(curve.speed_ups, kept, strict=True)
                ],
                name=f"{curve.kernels}, {curve.tokens_text}",
                line={
                    "color": colour,
                    "dash": "solid" if is_measured else "dot",
                    "width": 2.5 if is_first else 1.2,
                },
                mode="lines" if len(kept) > 1 else "markers",
                marker={"color": colour, "size": 9 if is_first else 6},
                showlegend=is_measured or not any(kept),
                hovertemplate="%{y:.2f} times as fast at %{x:.0%}",
            )
    own_points = [
        point
        for point in points
        if point.device == curves[0].device and point.machine in (None, curves[0].machine)
    ]
    for title in dict.fromkeys(point.title for point in own_points):
        found = [point for point in own_points if point.title == title]
        _add_points(drawn, found, "diamond" if found[0].rests == "compared" else "diamond-open")
    return _finish(drawn, 1.0, (0.1, 4.0), is_log=True)


def _add_points(drawn: go.Figure, points: list[PublishedPoint], symbol: str) -> None:
    drawn.add_scatter(
        x=[point.sparsity for point in points],
        y=[point.speed_up for point in points],
        name=html.escape(f"published: {points[0].title}", quote=False),
        mode="markers",
        line={"color": style.MUTED},
        marker={"color": style.MUTED, "size": 10, "symbol": symbol},
        text=[html.escape(point.conditions, quote=False) for point in points],
        hovertemplate="%{y:.2f} times as fast at %{x:.0%}: %{text}",
    )


def _draw_measured(results: SparsityResults, cards: FigureCards) -> list[Card]:
    if results.measured is None:
        return []
    drawn = style.figure(_SPARSITY, _SPEED, height=400)
    for place, curve in enumerate(results.measured.curves):
        drawn.add_scatter(
            x=list(curve.sparsities),
            y=list(curve.speed_ups),
            name=html.escape(f"{curve.kernels}, {curve.tokens_text}", quote=False),
            line=style.line_at(place),
            mode="lines+markers",
            hovertemplate="%{y:.2f} times as fast at %{x:.0%}",
        )
    points = [point for point in results.published if point.device == "cpu"]
    _add_points(drawn, points, "circle-open")
    _finish(drawn, 1.0, (0.05, 10.0), is_log=True)
    title = f"Measured on {results.measured.machine}"
    return [cards.card(title, _MEASURED_TEXT, {"": drawn})]


def _finish(
    drawn: go.Figure, at: float, within: tuple[float, float], is_log: bool = False
) -> go.Figure:
    """Draw the line at which both are equal, and show the part of the axis that decides."""
    drawn.add_hline(y=at, line={"color": style.MUTED, "dash": "dash", "width": 1})
    ends = [math.log10(end) if is_log else end for end in within]
    drawn.update_yaxes(type="log" if is_log else "linear", range=ends)
    drawn.update_xaxes(tickformat=".0%", range=[0, 1])
    return drawn
