"""Counting that the dispatch policies share. Compiled: a plan counts some ten thousand batches of thousands of tokens."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True)
def count_copies(
    rank_TK: NDArray[np.int64], source_T: NDArray[np.int64], num_ranks: int, only_distinct: bool
) -> NDArray[np.float64]:
    """Copies from each rank to each other one, ``[R, R]``: one for each expert, or one for each distinct rank of a token's experts."""
    copies_SR = np.zeros((num_ranks, num_ranks))
    for t in range(len(rank_TK)):
        for k in range(rank_TK.shape[1]):
            if not (only_distinct and _is_repeat(rank_TK[t], k)):
                copies_SR[source_T[t], rank_TK[t, k]] += 1.0
    np.fill_diagonal(copies_SR, 0.0)
    return copies_SR


@numba.njit(cache=True)
def count_arrivals(rank_TK: NDArray[np.int64], num_ranks: int) -> NDArray[np.float64]:
    """Tokens that have experts on each rank, ``[R]``."""
    arrivals_R = np.zeros(num_ranks)
    for t in range(len(rank_TK)):
        for k in range(rank_TK.shape[1]):
            if not _is_repeat(rank_TK[t], k):
                arrivals_R[rank_TK[t, k]] += 1.0
    return arrivals_R


@numba.njit(cache=True)
def count_forwarded(
    rank_TK: NDArray[np.int64], source_T: NDArray[np.int64], node_R: NDArray[np.int64], ranks_per_node: int
) -> NDArray[np.float64]:
    """Copies where each other node gets one, on the rank of the source's own position, which forwards it inside the node."""
    num_ranks = len(node_R)
    copies_SR = np.zeros((num_ranks, num_ranks))
    for t in range(len(rank_TK)):
        source = source_T[t]
        for k in range(rank_TK.shape[1]):
            rank = rank_TK[t, k]
            if _is_repeat(rank_TK[t], k):
                continue
            node = node_R[rank]
            relay = source
            if node != node_R[source]:
                first = node * ranks_per_node
                relay = first + (source % ranks_per_node) % min(ranks_per_node, num_ranks - first)
                is_first = True
                for j in range(k):
                    is_first = is_first and node_R[rank_TK[t, j]] != node
                if is_first:
                    copies_SR[source, relay] += 1.0
            copies_SR[relay, rank] += 1.0
    np.fill_diagonal(copies_SR, 0.0)
    return copies_SR


@numba.njit(cache=True)
def _is_repeat(rank_K: NDArray[np.int64], k: int) -> bool:
    """Whether an earlier expert of the token lies on the same rank."""
    for j in range(k):  # noqa: SIM110  numba compiles loops, not generators
        if rank_K[j] == rank_K[k]:
            return True
    return False
