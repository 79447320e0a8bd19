"""Folders of figures, one a file: a new file is a new figure on its page.

A file holds one frozen class that keeps :class:`Figure`. Files that begin with ``_`` are shared
drawing code.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import plotly.graph_objects as go

from simulator.base import plugins

Drawn: TypeAlias = go.Figure | dict[str, go.Figure] | None
"""What a figure draws: one plot, several by heading (such as one a deployment), or nothing where
there is nothing to show."""
Width: TypeAlias = Literal["full", "half", "quarter", "third"]
"""Of each plot of a figure, on a wide screen; thirds share a row evenly where there are two."""
Subject_contra = TypeVar("Subject_contra", contravariant=True)
"""What a page is about: the results of a run, what was executed, a scoreboard."""


class Figure(Protocol[Subject_contra]):
    """What a file in a folder of figures holds."""

    title: ClassVar[str]
    section: ClassVar[str]
    """Heading of the part of the page that it belongs to."""
    definition: ClassVar[str]
    """The caption: one line that says what is drawn, ending in a full stop."""
    absent: ClassVar[str]
    """The line that stands in its place when there is nothing to draw: why."""
    order: ClassVar[int]
    """Its place on the page; a section stands where its first figure does."""
    width: ClassVar[Width]
    """Of each plot, on a wide screen."""

    def draw(self, shown: Subject_contra, /) -> Drawn:
        """Draw it.

        Trace names become the legend, which the page draws; deployments take their label and colour
        from :mod:`simulator.report.style`; axis titles end in their unit in parentheses.
        """
        ...


def in_order(family: str) -> list[Any]:
    """Every figure of a folder, in the order of its page."""
    found = [plugins.build(family, {"kind": kind}, "report") for kind in plugins.available(family)]
    return sorted(found, key=lambda figure: figure.order)


def plots(figure: Figure[Subject_contra], shown: Subject_contra) -> dict[str, go.Figure]:
    """A figure's plots by heading; the heading is empty where there is one plot, and there are none
    where nothing is to be shown.
    """
    drawn = figure.draw(shown)
    if drawn is None:
        return {}
    return drawn if isinstance(drawn, dict) else {"": drawn}
