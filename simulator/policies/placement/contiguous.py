"""Experts in their own order, one block a rank: what serving engines do unless told otherwise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.policies.placement import Placed
from simulator.policies.placement._slots import in_blocks


class Contiguous(Frozen):
    """Rank 0 holds the first experts, rank 1 the next, and so on, whatever their load."""

    def place(
        self, load_LE: NDArray[np.float64], num_ranks: int, rng: np.random.Generator
    ) -> Placed:
        num_layers, num_experts = load_LE.shape
        return in_blocks(np.tile(np.arange(num_experts), (num_layers, 1)), num_ranks)
