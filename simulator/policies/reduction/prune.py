"""Experts that are seldom chosen are gone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.base.quantities import Experts, TopK


class Prune(Frozen):
    """The experts of each layer that most tokens chose are left (by counts of activations, as
    SEER-MoE, arXiv:2404.05089). A token that chose others takes some of those left in their place,
    which a recording does not tell: they are drawn by popularity.
    """

    num_experts: Experts
    """Experts of a layer that are left."""
    top_k: TopK | None = None
    """Experts of a token; absent = as many as before, or all that are left."""

    def reduce(
        self, load_E: NDArray[np.float64], pairs_EE: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        left = np.sort(np.argsort(-load_E, kind="stable")[: self.num_experts])
        becomes_E = np.full(len(load_E), -1, dtype=np.int64)
        becomes_E[left] = np.arange(len(left))
        return becomes_E
