"""The figures of the page of ``moesim plan``, one a file; each draws from the answer."""

from __future__ import annotations

from typing import Any, Protocol

from simulator.report import gallery


class Figure(gallery.Figure[dict[str, Any]], Protocol):
    """What a file in this folder holds."""


def figures() -> list[Figure]:
    """Every figure, in the order of the page."""
    return gallery.in_order("report.plan_figures")
