"""The figures of the report, one a file: a new file is a new figure on the page."""

from __future__ import annotations

from typing import Protocol

from simulator.report import gallery
from simulator.results.folder import Results


class Figure(gallery.Figure[Results], Protocol):
    """What a file in this folder holds."""


def figures() -> list[Figure]:
    """Every figure, in the order of the page."""
    return gallery.in_order("report.figures")
