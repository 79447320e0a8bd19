"""Figures of the page of an execution, one a file: a new file is a new figure."""

from __future__ import annotations

from simulator.report.gallery import Figure, load_figures
from simulator.results.executed import Executed


def figures() -> list[Figure[Executed]]:
    """Every figure, in the order of the page."""
    return load_figures("report.execution_figures")
