"""Figures of the page of a plan, one a file: a new file is a new figure."""

from __future__ import annotations

from simulator.report.gallery import Figure, load_figures
from simulator.results.answer import Answer


def figures() -> list[Figure[Answer]]:
    """Every figure, in the order of the page."""
    return load_figures("report.plan_figures")
