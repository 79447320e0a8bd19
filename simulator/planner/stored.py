"""Evaluations and outcomes as the store keeps them; what has another shape is refused."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter

from simulator.planner.explore import ClusterSize, Evaluation, SmallerMet
from simulator.planner.screen import Candidate
from simulator.planner.trial import Outcome


class StoredEvaluation(NamedTuple):
    """An evaluation without its candidate and its price, which are the question's."""

    cluster_size: ClusterSize | None
    outcome: Outcome | None
    tried: tuple[tuple[ClusterSize, float], ...]
    why: str
    below: Outcome | None
    most: ClusterSize | None
    risk: float
    smaller: SmallerMet | None

    @classmethod
    def strip(cls, evaluation: Evaluation) -> StoredEvaluation:
        """The parts of an evaluation that are stored."""
        return cls(*(getattr(evaluation, name) for name in cls._fields))

    def restore(self, candidate: Candidate, gpu_hour: float, quality: float = 0.0) -> Evaluation:
        """The evaluation that was stored.

        Args:
            gpu_hour: price of a GPU-hour now.
            quality: of the model, as it is scored now.
        """
        cost_per_hour = self.cluster_size.size * gpu_hour if self.cluster_size else math.inf
        return Evaluation(candidate, cost_per_hour=cost_per_hour, quality=quality, **self._asdict())


_INFINITE = ConfigDict(ser_json_inf_nan="constants")
STORED_EVALUATION = TypeAdapter(StoredEvaluation, config=_INFINITE)
STORED_OUTCOME = TypeAdapter(Outcome, config=_INFINITE)
