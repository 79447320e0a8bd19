"""Measurements of claims on the machine at hand, one a file: models are trained, shards run."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simulator.base.progress import Progress
from simulator.lab.results.claims import Case


class Trial(NamedTuple):
    """Findings of a measurement."""

    cases: tuple[Case, ...]
    sentences: tuple[str, ...]
    """Findings with numbers."""
    others_share: float
    """Share of the cores that other programs took meanwhile."""
    made: str = ""
    """Day and versions of what had been measured before; empty for what was measured now."""


class ClaimMeasurement(Protocol):
    """Measurement of one kind."""

    @property
    def command(self) -> str:
        """Command that measures the same by itself."""

    def identify(self) -> str:
        """Write everything, besides the machine, that the figures depend on.

        Raises:
            UserError: if something that the claim's file names does not exist.
        """

    def expect_s(self) -> float:
        """Seconds that it is going to take here.

        Raises:
            UserError: if PyTorch is missing, or something that the claim's file names does not
                exist.
        """

    def measure(self, tick: Progress) -> Trial:
        """Measure.

        Raises:
            UserError: if PyTorch is missing, or something that the claim's file names does not
                exist or cannot run for real.
        """
