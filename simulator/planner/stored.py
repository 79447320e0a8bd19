"""Findings and outcomes as the store keeps them, and what makes one of another shape be refused."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.screen import Candidate
from simulator.planner.trial import Outcome


class StoredEvaluation(NamedTuple):
    """An evaluation without its candidate and its price, which are the question's."""

    cluster_size: ClusterSize | None
    outcome: Outcome | None
    num_gpus: int
    tried: tuple[tuple[ClusterSize, float], ...]
    why: str
    below: Outcome | None
    most: ClusterSize | None
    risk: float


STORED_EVALUATION = TypeAdapter(StoredEvaluation)
STORED_OUTCOME = TypeAdapter(Outcome)


def strip_evaluation(evaluation: Evaluation) -> StoredEvaluation:
    """What is kept of an evaluation."""
    return StoredEvaluation(*(getattr(evaluation, name) for name in StoredEvaluation._fields))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as the store keeps it: ``STORED_EVALUATION`` reads it."""
    return {
        **strip_evaluation(evaluation)._asdict(),
        "outcome": evaluation.outcome and evaluation.outcome._asdict(),
        "below": evaluation.below and evaluation.below._asdict(),
    }


def restore_evaluation(kept: StoredEvaluation, candidate: Candidate, gpu_hour: float) -> Evaluation:
    """The evaluation that was kept.

    Args:
        gpu_hour: what a GPU costs now.
    """
    cost_per_hour = kept.cluster_size.size * gpu_hour if kept.cluster_size else math.inf
    return Evaluation(candidate=candidate, cost_per_hour=cost_per_hour, **kept._asdict())
