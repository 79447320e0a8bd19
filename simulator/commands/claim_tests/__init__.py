"""Tests of claims, one a file: each tries a claim under conditions and says what it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.results.claims import Case, Finding

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


def check_tried(cases: Sequence[Case]) -> None:
    """Refuse a claim that nothing was tried of, which no verdict can be reached on.

    Raises:
        UserError: if there is no case that counts.
    """
    if not any(case.counts for case in cases):
        raise UserError(
            "claim [trial]: no model runs under any of these conditions; name more GPUs or memory, "
            "or smaller models"
        )
