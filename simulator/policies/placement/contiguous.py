"""Placement of experts in their own order, one block for each rank: the default of
serving engines.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import Slots
from simulator.policies.placement import Placed, in_blocks


class Contiguous(Frozen):
    """Rank 0 holds the first experts, rank 1 the next, and so on, whatever their load."""

    num_slots: Slots | None = None
    """Slots of all ranks together; those beyond the experts hold the first experts again, as SGLang
    lays them out before it has seen a load (``init_trivial``). Absent = one for each expert."""

    def place(self, load_LE: Floats, num_ranks: int, rng: np.random.Generator) -> Placed:
        num_layers, num_experts = load_LE.shape
        num_slots = self.num_slots or num_experts
        if num_slots < num_experts:
            raise UserError(
                f"placement 'contiguous': num_slots = {num_slots} must be at least the "
                f"{num_experts} experts"
            )
        return in_blocks(np.tile(np.arange(num_slots) % num_experts, (num_layers, 1)), num_ranks)
