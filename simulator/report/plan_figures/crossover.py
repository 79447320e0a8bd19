"""Crossover of mixtures of experts and dense models: heat maps over load or speed and
sequence length, with choices for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.base.formats import TIMES, chance, number, percent, seconds, times
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.answer import Answer
from simulator.results.answer.crossover import FullPoint, MapPoint, Side, SpeedPoint
from simulator.results.answer.parts import band_text
from simulator.results.plan_text import doubt, hover

_REACH = 2.0
"""Doublings either way that the colours tell apart."""
_ROW_PIXELS = 44
_LEAST_ROWS = 3
"""Rows for which a map has room: titles of axes do not fit beside fewer."""
_INK = "#1A2230"
_COLOURS = [
    [0.0, "#CFA75B"],
    [0.25, "#E8D5AC"],
    [0.5, "#F2F2F0"],
    [0.75, "#CFC7EA"],
    [1.0, "#A493D8"],
]
"""Light enough for dark text, in both themes; safe for red-green deficiency; none is a model's of
the first five."""
_TERMS = {
    "weight streaming": "weights",
    "KV reading": "KV read",
    "prompt attention": "prompts",
    "imbalance": "waiting",
    "all-reduce": "reduce",
    "host overhead": "host",
    "KV memory": "KV room",
    "context length": "context",
    "compute": "FLOPs",
}
"""Terms in words that fit a cell on a phone; the hover says them whole."""


class _Reading(NamedTuple):
    """One way to hold two models against each other."""

    points: str
    """The map's field."""
    heading: str
    axis: str
    """Title of the horizontal axis."""
    column: Callable[[Any], str]
    order: Callable[[Any], Any]
    choices: dict[str, Callable[[Any], str]]
    """Texts that the reader can choose among, by the name of the choice."""


def _network(row: MapPoint) -> str:
    return "as it is" if row.network == 1 else f"{number(row.network)}{TIMES} as fast"


def _splits(row: SpeedPoint | FullPoint) -> str:
    return f"TP {row.gpus}" if row.gpus else "best"


_PAIR: dict[str, Callable[[Any], str]] = {"Models": lambda row: f"{row.moe} against {row.dense}"}
_READINGS = (
    _Reading(
        "cells",
        "At the same load",
        "Sequences decoding on each GPU",
        lambda row: number(row.batch_per_gpu),
        lambda row: row.batch_per_gpu,
        {
            **_PAIR,
            "Experts": lambda row: f"EP {row.ep}" if row.ep > 1 else "no EP",
            "Network": _network,
        },
    ),
    _Reading(
        "at_same_time",
        "At the same speed for a user",
        "Time per output token that is allowed",
        lambda row: seconds(row.time_per_token_s),
        lambda row: row.time_per_token_s,
        {**_PAIR, "Splits": _splits, "Network": _network},
    ),
    _Reading(
        "at_full_load",
        "Each at its full load",
        "Splits: best of each model, or TP of both",
        _splits,
        lambda row: row.gpus or 0,
        {**_PAIR, "Network": _network},
    ),
)


class Crossover(Figure[Answer]):
    """A heat map a reading."""

    title = "Where the mixture of experts wins"
    section = "Where MoE wins"
    definition = (
        "Output tokens per second of a GPU, the mixture of experts' over the dense model's, "
        "analytically: violet where the mixture of experts makes more, tan where the dense "
        "model does, empty where neither fits. Under each ratio stands what decides. A row is a "
        "length of prompt and of answer."
    )
    absent = "There is no pair of an MoE and a dense model."
    order = 30
    width = "full"

    def draw(self, answer: Answer) -> dict[str, go.Figure]:
        if answer.crossover is None:
            return {}
        readings = [(one, getattr(answer.crossover, one.points)) for one in _READINGS]
        return {one.heading: _plot(one, points) for one, points in readings if points}

    def find(self, answer: Answer) -> Finding | None:
        found = [] if answer.crossover is None else answer.crossover.at_full_load
        winners = [row.winner for row in found if row.winner is not None]
        wins = sum(row.winner == row.moe for row in found)
        return Finding("figure.wins", wins=wins, cases=len(winners)) if winners else None


def _plot(reading: _Reading, rows: Sequence[MapPoint]) -> go.Figure:
    columns = _list_texts(sorted(rows, key=reading.order), reading.column)
    lengths = _list_texts(sorted(rows, key=lambda row: (row.input, row.output)), _lengths)
    drawn = style.figure(
        reading.axis,
        "Prompt/answer (tokens)",
        height=96 + _ROW_PIXELS * max(len(lengths), _LEAST_ROWS),
    )
    values = {name: _list_texts(rows, text) for name, text in reading.choices.items()}
    first = {name: _usual(name, options) for name, options in values.items()}
    by_choice: dict[tuple[str, ...], list[MapPoint]] = {}
    for row in rows:
        by_choice.setdefault(tuple(text(row) for text in reading.choices.values()), []).append(row)
    ticks = [-2, -1, 0, 1, 2]
    words = [f"dense {TIMES}4", f"{TIMES}2", "equal", f"{TIMES}2", f"MoE {TIMES}4"]
    for texts, own in by_choice.items():
        chosen = dict(zip(reading.choices, texts, strict=True))
        at = {(_lengths(row), reading.column(row)): row for row in own}
        grid = [[at.get((length, column)) for column in columns] for length in lengths]
        drawn.add_heatmap(
            x=columns,
            y=lengths,
            z=[[_colour(row) for row in line] for line in grid],
            text=[[_cell(row) for row in line] for line in grid],
            customdata=[
                [_said(row, length) for row in line]
                for line, length in zip(grid, lengths, strict=True)
            ],
            texttemplate="%{text}",
            textfont={"size": 11, "color": _INK},
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            zmin=-_REACH,
            zmax=_REACH,
            colorscale=_COLOURS,
            colorbar={
                "tickvals": ticks,
                "ticktext": words,
                "orientation": "h",
                "y": 1.0,
                "yanchor": "bottom",
                "ypad": 8,
                "len": 0.9,
            },
            xgap=2,
            ygap=2,
            visible=chosen == first,
            meta=chosen,
        )
    drawn.update_xaxes(type="category", showgrid=False, fixedrange=True)
    drawn.update_yaxes(type="category", showgrid=False, autorange="reversed", fixedrange=True)
    # The page draws a list for each choice that is one.
    choices = [
        {"name": name, "values": options, "first": first[name]}
        for name, options in values.items()
        if len(options) > 1
    ]
    drawn.update_layout(meta={"choices": choices, "toolbar": False})
    return drawn


def _list_texts(rows: Iterable[MapPoint], text: Callable[[Any], str]) -> list[str]:
    """Texts of rows in their order, each once."""
    return list(dict.fromkeys(map(text, rows)))


def _usual(name: str, options: list[str]) -> str:
    """Option that is shown first."""
    return "as it is" if name == "Network" and "as it is" in options else options[0]


def _lengths(row: MapPoint) -> str:
    return f"{_thousands(row.input)}/{_thousands(row.output)}"


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


def _colour(row: MapPoint | None) -> float | None:
    if row is None or (row.ratio is None and row.winner is None):
        return None
    if row.ratio is None:
        return _REACH if row.winner == row.moe else -_REACH
    return round(max(-_REACH, min(_REACH, math.log2(row.ratio))), 3)


def _cell(row: MapPoint | None) -> str:
    """Text of a cell: the ratio, and what decides, in words short enough for a phone."""
    if row is None or (row.ratio is None and row.winner is None):
        return ""
    if row.ratio is None:
        return f"only<br>{'MoE' if row.winner == row.moe else 'dense'}"
    term, ratio = row.deciding_term or "", _ratio(row.ratio)
    said = f"<b>{ratio}</b>" if row.is_clear else f"{ratio}{doubt(row)}"
    return f"{said}{f'<br>{_TERMS.get(term, term)}' if term else ''}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}{TIMES}" if ratio < 10 else f"{ratio:.0f}{TIMES}"


def _said(row: MapPoint | None, length: str) -> str:
    if row is None:
        return ""
    lines = [f"{row.moe} against {row.dense}, {length}", *map(_describe_side, row.sides)]
    if row.winner is None:
        lines.append("alike" if row.ratio else "neither fits")
    else:
        by = f" by {times(max(row.ratio, 1 / row.ratio))}" if row.ratio else ""
        share = f" ({percent(row.share)} of what it saves)" if row.share else ""
        lines.append(f"{row.winner} wins{by}; what decides: {row.deciding_term}{share}")
    if cases := band_text(row.band_of("ratio"), _ratio):
        lines.append(f"80 % of cases: {cases}{'' if row.is_clear else ', either may win'}")
    if row.moe_wins_probability is not None:
        lines.append(f"{row.moe} wins in {chance(row.moe_wins_probability)} of cases")
    return hover(*lines)


def _describe_side(side: Side) -> str:
    if side.tokens_per_s_gpu is None:
        return f"{side.name}: does not fit"
    return (
        f"{side.name} ({side.split}): {number(side.tokens_per_s_gpu)} tokens/s a GPU, "
        f"{number(side.sequences_per_gpu or 0.0)} sequences a GPU, "
        f"{seconds(side.time_per_token_s or 0.0)} a token"
    )
