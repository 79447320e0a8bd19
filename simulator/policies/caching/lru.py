"""Least recently used: the experts of the latest steps stay."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen
from simulator.policies.caching import ExpertUses


class LeastRecentlyUsed(Frozen):
    """A missing expert takes the place of the one whose last use is longest ago.

    The cache begins empty. Caches of this kind are in Mixtral-offloading (arXiv:2312.17238) and
    in llama.cpp's proposal of cached experts (github.com/ggml-org/llama.cpp/issues/27861).
    """

    def rate_experts(self, uses: ExpertUses) -> Floats:
        return uses.last_LE.astype(np.float64)
