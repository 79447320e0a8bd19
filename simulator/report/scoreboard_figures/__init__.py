"""The figures of the page of ``moesim validate``, one a file, as in :mod:`simulator.report.figures`."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import plotly.graph_objects as go

from simulator import plugins
from simulator.scores import Scoreboard


class Figure(Protocol):
    """What a file in this folder holds; see :class:`simulator.report.figures.Figure`."""

    title: ClassVar[str]
    section: ClassVar[str]
    definition: ClassVar[str]
    absent: ClassVar[str]
    order: ClassVar[int]
    width: ClassVar[Literal["full", "half", "quarter"]]

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        """The plots by heading; none where there is nothing to show."""
        ...


def figures() -> list[Figure]:
    """Every figure, in the order of the page."""
    family = "report.scoreboard_figures"
    found: list[Figure] = [plugins.build(family, {"kind": kind}, "report") for kind in plugins.available(family)]
    return sorted(found, key=lambda figure: figure.order)
