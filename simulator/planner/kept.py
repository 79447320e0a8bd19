"""Findings and outcomes as the store keeps them, and what makes one of another shape be refused."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from simulator.planner.explore import Finding, Sized
from simulator.planner.screen import Option
from simulator.planner.trial import Outcome


class KeptFinding(NamedTuple):
    """A finding without its option and its price, which are the question's."""

    sized: Sized | None
    outcome: Outcome | None
    num_gpus: int
    tried: tuple[tuple[Sized, float], ...]
    why: str
    below: Outcome | None
    most: Sized | None
    risk: float


KEPT_FINDING = TypeAdapter(KeptFinding)
KEPT_OUTCOME = TypeAdapter(Outcome)


def kept_of(finding: Finding) -> KeptFinding:
    """What is kept of a finding."""
    return KeptFinding(*(getattr(finding, name) for name in KeptFinding._fields))


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding as the store keeps it: ``KEPT_FINDING`` reads it."""
    return {
        **kept_of(finding)._asdict(),
        "outcome": finding.outcome and finding.outcome._asdict(),
        "below": finding.below and finding.below._asdict(),
    }


def finding_of(kept: KeptFinding, option: Option, gpu_hour: float) -> Finding:
    """The finding that was kept.

    Args:
        gpu_hour: what a GPU costs now.
    """
    cost_per_hour = kept.sized.size * gpu_hour if kept.sized else math.inf
    return Finding(option=option, cost_per_hour=cost_per_hour, **kept._asdict())
