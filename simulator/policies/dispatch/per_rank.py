"""Dispatch of one copy for every rank that holds any of the token's experts."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.policies.dispatch import Rows
from simulator.policies.token_counts import count_copies


class PerRank(Frozen):
    """A token whose experts share a rank is sent there once."""

    kernels: str = "normal"
    """Name of the entry in the calibration's table ``exchange`` that prices it, such as
    ``one_sided``."""

    def copies(self, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
        return np.asarray(count_copies(rank_TK, source_T, len(node_R), True))

    def rows(self, rank_TK: Ints, node_R: Ints) -> Rows:
        top_k = rank_TK.shape[1]
        is_same_TKK = rank_TK[:, :, None] == rank_TK[:, None, :]
        is_first_TK = (rank_TK >= 0) & ~np.tril(is_same_TKK, -1).any(axis=2)
        token_N, first_N = np.nonzero(is_first_TK)
        choice_NW = np.where(is_same_TKK[token_N, first_N], np.arange(top_k), -1)
        return Rows(token_N, rank_TK[token_N, first_N], choice_NW)
