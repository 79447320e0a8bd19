"""Waterfall of an output token's time, from what even work and free links cost to all of it."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go

from simulator.base.formats import seconds, time_axis
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_name
from simulator.results.explained import PIECES, Waterfall
from simulator.results.explanation_text import LEAST_SHOWN, read_explanation
from simulator.results.folder import Results

_ROW_PIXELS = 38
"""Height of a piece's bar with its name above."""
_LONGEST_NAME = 52
"""Characters of a piece's name with its time, which fit a phone's width."""
_PROMPTS = "#882255"
_WAITS, _OTHERS = style.PHASE_COLOURS["wait"], style.MUTED
_COLOURS = {
    **{name: style.PHASE_COLOURS[name] for name in ("attention", "dense", "experts")},
    **dict.fromkeys(("chance", "skew", "unevenness", "jitter", "bubble"), _WAITS),
    "links": style.PHASE_COLOURS["dispatch"],
    "busiest_link": style.PHASE_COLOURS["dispatch"],
    "latency": style.PHASE_COLOURS["combine"],
    "collectives": style.PHASE_COLOURS["collective"],
    "host": style.PHASE_COLOURS["overhead"],
}
"""Colours of the pieces: those of the phases that they are parts of."""


class TokenWaterfall(Figure[Results]):
    """A plot a deployment and pool, a bar a piece."""

    title = "A token's time, piece by piece"
    section = "Why it takes as long as it does"
    definition = (
        "Time from one output token to the next, mean over all but each request's first (of a "
        "prefill pool, seconds of its steps for each prompt token), from what even work and free "
        "links would cost, through everything that makes it longer, to all of it. Behind each "
        "piece, in dark red, what it takes longer for prompts of other requests."
    )
    absent = "The run was not explained (moesim run --explain)."
    order = 1

    def draw(self, results: Results) -> dict[str, go.Figure]:
        label = style.labels(results)
        return {
            f"{label[name]}, {waterfall.pool} pool"
            if len(explained.waterfalls) > 1
            else label[name]: _draw_pieces(waterfall)
            for name, explained in read_explanation(results.run).items()
            for waterfall in explained.waterfalls
        }


def _draw_pieces(waterfall: Waterfall) -> go.Figure:
    shown = {
        name: part_s
        for name, part_s in waterfall.pieces.items()
        if part_s >= LEAST_SHOWN * waterfall.token_s
    }
    unit_s, unit = time_axis(waterfall.token_s)
    of_prompts = [waterfall.prompts[name] for name in shown]
    own = [part_s - prompt_s for part_s, prompt_s in zip(shown.values(), of_prompts, strict=True)]
    starts_s = [sum(list(shown.values())[:number]) for number in range(len(shown))]
    title = f"Time of {'an output' if waterfall.token == 'output' else 'a prompt'} token ({unit})"
    height = 60 + _ROW_PIXELS * len(shown)
    drawn = style.figure(title, "", height, bargap=0.62, margin_l=12)
    colours = [_COLOURS.get(name, _OTHERS) for name in shown]
    for begun_s, parts_s, colour in (
        (starts_s, own, colours),
        (np.add(starts_s, own), of_prompts, _PROMPTS),
    ):
        drawn.add_bar(
            orientation="h",
            y=list(range(len(shown))),
            base=[begun / unit_s for begun in begun_s],
            x=[part_s / unit_s for part_s in parts_s],
            marker={"color": colour, "line": {"width": 0}},
            hoverinfo="skip",  # its name says all
            showlegend=False,
        )
    drawn.update_layout(barmode="overlay")
    texts = [_name_piece(name, part_s, waterfall) for name, part_s in shown.items()]
    for row, text in enumerate(texts):
        add_name(drawn, row - 0.2, html.escape(text, quote=False), _LONGEST_NAME)
    drawn.update_yaxes(visible=False, range=[len(shown) - 0.6, -0.85])
    drawn.update_xaxes(range=[0, 1.01 * waterfall.token_s / unit_s], nticks=8)
    return drawn


def _name_piece(name: str, part_s: float, waterfall: Waterfall) -> str:
    share, prompts = (
        f"{100 * one_s / waterfall.token_s:.1f}" for one_s in (part_s, waterfall.prompts[name])
    )
    if waterfall.prompts[name] < LEAST_SHOWN * waterfall.token_s:
        return f"{PIECES[name]}: {seconds(part_s)}, {share} %"
    return f"{PIECES[name]}: {share} % ({prompts} prompts)"
