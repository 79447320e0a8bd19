"""No spilling: every rank computes the tokens of its own experts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.policies.spilling import Spills


class Never(Frozen):
    """Experts stay where placement and rebalancing put them."""

    spills: ClassVar[bool] = False

    def spill(
        self, pairs_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
    ) -> Spills:
        nothing = np.zeros(0, dtype=np.int64)
        return Spills(nothing, nothing, nothing)
