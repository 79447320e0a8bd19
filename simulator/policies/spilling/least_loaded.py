"""Least-Loaded Expert Parallelism: what a rank has too much of is computed by the least loaded
ranks, which get the experts' weights for one step.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor, TokenCount
from simulator.policies.spilling import Spills


class LeastLoaded(Frozen):
    """In steps whose busiest rank has more than ``threshold`` times the mean rank's pairs, ranks
    keep up to ``capacity`` times the mean; what is beyond goes to the least loaded rank, largest
    experts first, in pieces of ``least_pairs`` at least.

    Published as LLEP (arXiv:2601.17111, github.com/SalesforceAIResearch/LeastLoadedEP), whose
    settings the defaults are: up to 5 times as fast where 95 % of all tokens choose four experts.
    Weights travel over the same links as the tokens, at the same time; counts are exchanged before
    that, which is not priced. Weights that are lent need memory, which is not counted either.
    """

    threshold: Factor = 1.3
    """Ratio of the busiest rank's pairs to the mean rank's above which a step spills."""
    capacity: Factor = 1.0
    """Ratio of the pairs that a rank keeps to the mean rank's."""
    least_pairs: TokenCount = 1024
    """Fewest token-expert pairs that an expert is lent for: smaller products do not pay for the
    weights' way."""

    def spill(self, pairs_P: Ints, rank_P: Ints, num_ranks: int) -> Spills:
        load_R = np.bincount(rank_P, weights=pairs_P, minlength=num_ranks).astype(np.float64)
        found: dict[tuple[int, int], int] = {}
        if load_R.max() > self.threshold * load_R.mean():
            limit = np.ceil(self.capacity * load_R.mean())
            for rank in np.flatnonzero(load_R > limit).tolist():
                for slot in np.argsort(-pairs_P, kind="stable").tolist():
                    if rank_P[slot] == rank:
                        self._lend(slot, rank, int(pairs_P[slot]), load_R, limit, found)
        slots, ranks = np.array(list(found), dtype=np.int64).reshape(-1, 2).T
        return Spills(slots, ranks, np.array(list(found.values()), dtype=np.int64))

    def _lend(
        self,
        slot: int,
        rank: int,
        left: int,
        load_R: Floats,
        limit: float,
        found: dict[tuple[int, int], int],
    ) -> None:
        """Lend the expert of a slot to the least loaded ranks as long as its rank has too much."""
        while True:
            to = int(load_R.argmin())
            moved = int(min(left, load_R[rank] - limit, limit - load_R[to]))
            if moved < max(self.least_pairs, 1):
                return
            found[slot, to] = found.get((slot, to), 0) + moved
            left -= moved
            load_R[rank] -= moved
            load_R[to] += moved
