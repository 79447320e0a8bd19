"""Balancing to each replica in turn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.frozen import Frozen
from simulator.policies.balancing import Rule


class RoundRobin(Frozen):
    """Blind to load."""

    needs_load: ClassVar[bool] = False

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule:
        return Rule(turns=lambda count: np.arange(count) % num_replicas)
