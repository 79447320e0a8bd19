"""The look that all figures share: one colour a deployment on the whole page, and fixed colours for
phases; fonts, margins and the two themes are those of the page's script.
"""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from simulator.results.phases import STEP_PHASES
from simulator.results.results_folder import ResultsFolder

DEPLOYMENT_COLOURS = (
    "#0077BB",
    "#EE7733",
    "#009E73",
    "#CC5599",
    "#33BBEE",
    "#B8860B",
    "#7766CC",
    "#7F7F7F",
)
"""Told apart with any of the usual colour-vision deficiencies (after Okabe and Ito, and Tol), and
on light and dark."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Tell deployments apart beyond the eighth, and decode from prefill."""
PHASE_COLOURS = dict(
    zip(
        STEP_PHASES,
        ("#4477AA", "#66CCEE", "#228833", "#AA8811", "#EECC66", "#EE6677", "#AA3377", "#A5ACB5"),
        strict=True,
    )
)
MEMORY_COLOURS = {
    "weights": "#4477AA",
    "drafting module": "#AA7744",
    "KV cache": "#66CCEE",
    "reserve": "#A5ACB5",
}
SHARE_TICKS: dict[str, Any] = {
    "tickvals": [n / 5 for n in range(6)],
    "ticktext": [f"{20 * n}\N{NO-BREAK SPACE}%" for n in range(6)],
}
"""Ticks of an axis of shares from 0 to 1."""

MUTED = "#808B99"
"""For target lines: visible on light and on dark."""
LOAD_COLOURS = [
    [0.0, "#2166AC"],
    [0.25, "#92C5DE"],
    [0.5, "#F2F2F0"],
    [0.75, "#F4A582"],
    [1.0, "#B2182B"],
]
"""Blue below the mean, red above it: safe for red-green deficiency."""
AMOUNT_COLOURS = "Cividis"


def shorten(text: str, length: int = 44) -> str:
    """Cut a text in its middle to a phone's width: names of variants differ at the end.

    >>> shorten("a deployment with a very long name, no. 3", 24)
    'a deployment…name, no. 3'
    """
    if len(text) <= length:
        return text
    end = length // 2 - 1
    return f"{text[: length - 1 - end].rstrip()}…{text[-end:].lstrip()}"


def labels(results: ResultsFolder) -> dict[str, str]:
    """The text that stands for each deployment in a figure: escaped for Plotly's markup, with the
    mark of a rumoured model.
    """
    return {
        name: html.escape(name, quote=False)
        + (" (rumoured)" if results.facts(name).get("is_rumour") else "")
        for name in results.deployments
    }


def short(label: str, length: int = 44) -> str:
    """An escaped label cut in its middle."""
    return html.escape(shorten(html.unescape(label), length), quote=False)


def colour_at(place: int) -> str:
    """Colour of what stands at a place in a list; the ninth has that of the first."""
    return DEPLOYMENT_COLOURS[place % len(DEPLOYMENT_COLOURS)]


def line_at(place: int) -> dict[str, Any]:
    """Line of what stands at a place in a list: its colour, and a dash beyond the eighth."""
    rounds = place // len(DEPLOYMENT_COLOURS)
    return {"color": colour_at(place), "dash": DASHES[rounds % len(DASHES)], "width": 2}


def colours(results: ResultsFolder) -> dict[str, str]:
    """The colour of each deployment: the one that its facts name, if they do."""
    given = {name: results.facts(name).get("colour") for name in results.deployments}
    return {name: given[name] or colour_at(i) for i, name in enumerate(results.deployments)}


def _rounds(results: ResultsFolder) -> dict[str, int]:
    """Number of times that the colours had run out before each deployment."""
    return {name: i // len(DEPLOYMENT_COLOURS) for i, name in enumerate(results.deployments)}


def lines(results: ResultsFolder) -> dict[str, dict[str, Any]]:
    """The line of each deployment: its colour, and a dash beyond the eighth."""
    colour = colours(results)
    return {name: line_at(i) | {"color": colour[name]} for i, name in enumerate(colour)}


def markers(results: ResultsFolder) -> dict[str, dict[str, Any]]:
    """The bar of each deployment: its colour, and stripes beyond the eighth."""
    colour = colours(results)
    return {
        name: {"color": colour[name], "pattern": {"shape": "/" if i else ""}}
        for name, i in _rounds(results).items()
    }


def fade_colour(colour: str, share: float) -> str:
    """A colour that lets what is behind it through.

    >>> fade_colour("#0077BB", 0.2)
    'rgba(0,119,187,0.2)'
    """
    red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def swatch(colour: str, is_striped: bool) -> str:
    """CSS for the patch of colour in a legend.

    >>> swatch("#0077BB", is_striped=False)
    'background:#0077BB'
    """
    if not is_striped:
        return f"background:{colour}"
    return f"background:repeating-linear-gradient(-45deg,{colour} 0 3px,transparent 3px 5px)"


def swatches(results: ResultsFolder) -> dict[str, str]:
    """CSS for the patch of colour of each deployment."""
    colour = colours(results)
    return {
        name: swatch(colour[name], is_striped=results.facts(name).get("is_striped", i > 0))
        for name, i in _rounds(results).items()
    }


def figure(x: str, y: str, height: int = 300, **layout: Any) -> go.Figure:
    """An empty figure with titled axes.

    Args:
        x: title of the horizontal axis, its unit in parentheses at the end.
        y: title of the vertical axis, likewise.
        height: pixels; the width is the page's.
    """
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    # Plotly's own template is large, and the page's script has ours.
    drawn = go.Figure(layout={"template": "none", "height": height, **axes})
    return drawn.update_layout(**layout) if layout else drawn
