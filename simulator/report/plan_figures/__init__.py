"""Figures of the page of a plan, one a file: a new file is a new figure."""

from __future__ import annotations

from typing import Any

from simulator.report.gallery import Figure, load_figures


def figures() -> list[Figure[Any]]:
    """Every figure, in the order of the page."""
    return load_figures("report.plan_figures")
