"""Rows that several dispatch policies send."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.policies.dispatch import Rows


def row_per_rank(rank_TK: NDArray[np.int64]) -> Rows:
    """List a row for each distinct rank of a token's experts, for all of its experts there."""
    top_k = rank_TK.shape[1]
    is_same_TKK = rank_TK[:, :, None] == rank_TK[:, None, :]
    is_first_TK = (rank_TK >= 0) & ~np.tril(is_same_TKK, -1).any(axis=2)
    token_N, first_N = np.nonzero(is_first_TK)
    choice_NW = np.where(is_same_TKK[token_N, first_N], np.arange(top_k), -1)
    return Rows(token_N, rank_TK[token_N, first_N], choice_NW)
