"""Balancing to a replica drawn at random."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.frozen import Frozen
from simulator.policies.balancing import Rule


class Random(Frozen):
    """Blind to load."""

    needs_load: ClassVar[bool] = False

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule:
        return Rule(turns=lambda count: rng.integers(num_replicas, size=count))
