"""Experts that are seldom chosen are gone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.policies.reduction import MostChosen


class Prune(MostChosen):
    """The experts of each layer that most tokens chose are left (by counts of activations, as
    SEER-MoE, arXiv:2404.05089). A token that chose others takes some of those left in their place,
    which a recording does not tell: they are drawn by popularity.
    """

    def reduce(
        self, load_E: NDArray[np.float64], pairs_EE: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        left = self.choose_left(load_E)
        becomes_E = np.full(len(load_E), -1, dtype=np.int64)
        becomes_E[left] = np.arange(len(left))
        return becomes_E
