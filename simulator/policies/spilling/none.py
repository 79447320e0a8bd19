"""No spilling: every rank computes the tokens of its own experts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.arrays import Ints
from simulator.base.frozen import Frozen
from simulator.policies.spilling import Spills


class Never(Frozen):
    """Experts stay where placement and rebalancing put them."""

    spills: ClassVar[bool] = False

    def spill(self, pairs_P: Ints, rank_P: Ints, num_ranks: int) -> Spills:
        nothing = np.zeros(0, dtype=np.int64)
        return Spills(nothing, nothing, nothing)
