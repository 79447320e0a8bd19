"""Dispatch of one copy for every rank that holds any of the token's experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.policies.dispatch import Rows
from simulator.policies.dispatch._rows import row_per_rank
from simulator.policies.token_counts import count_copies


class PerRank(Frozen):
    """A token whose experts share a rank is sent there once."""

    kernels: str = "normal"
    """Name of the entry in the calibration's table ``exchange`` that prices it, such as
    ``one_sided``."""

    def copies(
        self, rank_TK: NDArray[np.int64], source_T: NDArray[np.int64], node_R: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return np.asarray(count_copies(rank_TK, source_T, len(node_R), True))

    def rows(self, rank_TK: NDArray[np.int64], node_R: NDArray[np.int64]) -> Rows:
        return row_per_rank(rank_TK)
