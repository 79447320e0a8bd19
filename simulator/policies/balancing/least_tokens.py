"""Balancing to the replica with the fewest unfinished tokens, output lengths known (an oracle's
bound on what balancing can give).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.frozen import Frozen
from simulator.policies.balancing import Rule


class LeastTokens(Frozen):
    """Ties go to the first."""

    needs_load: ClassVar[bool] = True

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule:
        return Rule(per_token=1)
