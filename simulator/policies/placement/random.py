"""Placement of experts in random order, different in every layer."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen
from simulator.policies.placement import Placed, in_blocks


class Random(Frozen):
    """Every layer's experts in random order, cut into one block a rank: the baseline that knows no
    load.
    """

    def place(self, load_LE: Floats, num_ranks: int, rng: np.random.Generator) -> Placed:
        num_layers, num_experts = load_LE.shape
        return in_blocks(
            rng.permuted(np.tile(np.arange(num_experts), (num_layers, 1)), axis=1), num_ranks
        )
