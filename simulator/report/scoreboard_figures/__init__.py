"""Figures of the page of the accuracy, one a file: a new file is a new figure."""

from __future__ import annotations

from simulator.report.gallery import Figure, load_figures
from simulator.results.scores import Scoreboard


def figures() -> list[Figure[Scoreboard]]:
    """Every figure, in the order of the page."""
    return load_figures("report.scoreboard_figures")
