"""Experts that are seldom chosen are gone."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.policies.reduction import MostChosen


class Prune(MostChosen):
    """The experts of each layer that most tokens chose are left (by counts of activations, as
    SEER-MoE, arXiv:2404.05089). A token that chose others takes some of those left in their place,
    which a recording does not tell: they are drawn by popularity.
    """

    def reduce(self, load_E: Floats, pairs_EE: Floats) -> Ints:
        left = self.choose_left(load_E)
        becomes_E = np.full(len(load_E), -1, dtype=np.int64)
        becomes_E[left] = np.arange(len(left))
        return becomes_E
