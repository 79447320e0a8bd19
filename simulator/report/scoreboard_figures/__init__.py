"""The figures of the page of ``moesim validate``, one a file."""

from __future__ import annotations

from typing import Protocol

from simulator.report import gallery
from simulator.results.scores import Scoreboard


class Figure(gallery.Figure[Scoreboard], Protocol):
    """What a file in this folder holds."""


def figures() -> list[Figure]:
    """Every figure, in the order of the page."""
    return gallery.in_order("report.scoreboard_figures")
