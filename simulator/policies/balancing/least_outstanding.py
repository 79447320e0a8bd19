"""Balancing to the replica with the fewest unfinished requests."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.frozen import Frozen
from simulator.policies.balancing import Rule


class LeastOutstanding(Frozen):
    """Join the shortest queue; ties go to the first."""

    needs_load: ClassVar[bool] = True

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule:
        return Rule(per_request=1)
