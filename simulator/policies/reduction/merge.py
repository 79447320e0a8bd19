"""Experts are merged into those that tokens choose beside them."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.policies.reduction import MostChosen


class Merge(MostChosen):
    """The experts of each layer that most tokens chose take in the others, whose tokens go to them
    (M-SMoE, arXiv:2310.01334). Each of the others joins the one that tokens chose most often beside
    it: M-SMoE groups by what the router computes, of which recordings hold the choices alone. A
    token that chose several of one group takes others in their place, drawn by popularity.
    """

    def reduce(self, load_E: Floats, pairs_EE: Floats) -> Ints:
        left = self.choose_left(load_E)
        becomes_E = np.argmax(pairs_EE[:, left], axis=1)
        # Experts that nobody chose beside any of those join the one with fewest tokens.
        becomes_E[pairs_EE[:, left].max(axis=1) == 0] = int(np.argmin(load_E[left]))
        becomes_E[left] = np.arange(len(left))
        return np.asarray(becomes_E, dtype=np.int64)
