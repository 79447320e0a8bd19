"""The figures of the report, one a file: a new file is a new figure on the page.

A file holds one frozen class that keeps :class:`Figure`. Files that begin with ``_`` are shared drawing code.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol, TypeAlias

import plotly.graph_objects as go

from simulator import plugins
from simulator.results import Results

Drawn: TypeAlias = go.Figure | dict[str, go.Figure] | None
"""What a figure draws: one plot, several by heading (such as one a deployment), or None where this run has nothing to show."""


class Figure(Protocol):
    """What a file in this folder holds."""

    title: ClassVar[str]
    section: ClassVar[str]
    """Heading of the part of the page that it belongs to."""
    definition: ClassVar[str]
    """The caption: one line that says what is drawn, ending in a full stop."""
    absent: ClassVar[str]
    """The line that stands in its place when there is nothing to draw: why."""
    order: ClassVar[int]
    """Its place on the page; a section stands where its first figure does."""
    width: ClassVar[Literal["full", "half", "quarter"]]
    """Of each plot, on a wide screen."""

    def draw(self, results: Results) -> Drawn:
        """Draw it.

        Trace names become the legend, which the page draws; deployments take their label and colour from
        :mod:`simulator.report.style`; axis titles end in their unit in parentheses.
        """
        ...


def figures() -> list[Figure]:
    """Every figure, in the order of the page."""
    found: list[Figure] = [
        plugins.build("report.figures", {"kind": kind}, "report") for kind in plugins.available("report.figures")
    ]
    return sorted(found, key=lambda figure: figure.order)


def plots(figure: Figure, results: Results) -> dict[str, go.Figure]:
    """A figure's plots by heading; the heading is empty where there is one plot, and there are none where nothing is to be shown."""
    drawn = figure.draw(results)
    if drawn is None:
        return {}
    return drawn if isinstance(drawn, dict) else {"": drawn}
