"""The figures of the page of ``moesim execute``, one a file."""

from __future__ import annotations

from typing import Protocol

from simulator.report import gallery
from simulator.results.executed import Executed


class Figure(gallery.Figure[Executed], Protocol):
    """What a file in this folder holds."""


def figures() -> list[Figure]:
    """Every figure, in the order of the page."""
    return gallery.in_order("report.execution_figures")
