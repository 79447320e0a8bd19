"""Counting that the dispatch policies share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def count_pairs(source: NDArray[np.int64], destination: NDArray[np.int64], num_ranks: int) -> NDArray[np.float64]:
    """How often each (source, destination) occurs, ``[R, R]``, the diagonal set to 0."""
    counts = np.bincount(source * num_ranks + destination, minlength=num_ranks * num_ranks)
    counts_SR = counts.astype(np.float64).reshape(num_ranks, num_ranks)
    np.fill_diagonal(counts_SR, 0.0)
    return counts_SR


def hits(rank_TK: NDArray[np.int64], num_ranks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (token, rank) pairs: a token whose experts share a rank counts once. Returns the tokens and the ranks."""
    hit_TR = np.zeros((len(rank_TK), num_ranks), dtype=np.bool_)
    hit_TR[np.arange(len(rank_TK))[:, None], rank_TK] = True
    token, rank = np.nonzero(hit_TR)
    return token, rank
