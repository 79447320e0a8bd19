"""Least frequently used: the experts that most steps used stay."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen
from simulator.policies.caching import ExpertUses


class LeastFrequentlyUsed(Frozen):
    """A missing expert takes a place when as many steps used it as the least used one that is held;
    between equals the later use decides.

    Uses are counted from the first step on, of experts that are not held too (perfect LFU, Breslau
    et al., INFOCOM 1999). The cache begins empty.
    """

    def rate_experts(self, uses: ExpertUses) -> Floats:
        now = max(int(uses.last_LE.max(initial=0)), 0) + 1
        return np.asarray(uses.count_LE + uses.last_LE / now, dtype=np.float64)
