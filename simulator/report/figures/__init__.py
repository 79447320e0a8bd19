"""Figures of the page of a run, one a file: a new file is a new figure."""

from __future__ import annotations

from simulator.report.gallery import Figure, load_figures
from simulator.results.folder import Results


def figures() -> list[Figure[Results]]:
    """Every figure, in the order of the page."""
    return load_figures("report.figures")
