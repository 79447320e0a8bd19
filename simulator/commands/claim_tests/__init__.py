"""Tests of claims, one a file: each tries a claim under conditions and says what it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simulator.base.progress import Progress
from simulator.results.claims import Finding

RIVALS = {
    "total_params": "dense, as large",
    "quality": "dense, as good",
    "active_params": "dense, as active",
}
"""Rivals in words, by the measure in which they are equal."""


class ClaimTest(Protocol):
    """Test of one kind of claim."""

    def find(self, seeds: Sequence[int], tick: Progress) -> Finding:
        """Try the claim.

        Args:
            seeds: of the simulations; bands are over them.

        Raises:
            UserError: if something that the claim's file names does not exist or fit.
        """
