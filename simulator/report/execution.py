"""The report page of ``moesim execute``."""

from __future__ import annotations

from simulator.executed import Executed


def render(executed: Executed) -> str:
    """The page as one HTML document."""
    return executed.summary.to_html()
