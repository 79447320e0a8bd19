"""Counts of tokens and copies for the dispatch policies. Compiled: a plan counts some ten thousand
batches of thousands of tokens.

Each rank (or node) remembers the last token that reached it, by which a token's second expert there
is known. A pair that was dropped has the rank -1 and counts nowhere.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.jit import jit


@jit
def count_copies(rank_TK: Ints, source_T: Ints, num_ranks: int, only_distinct: bool) -> Floats:
    """Count copies from each rank to each other one, ``[R, R]``: one for each expert, or one for
    each distinct rank of a token's experts.
    """
    copies_SR = np.zeros((num_ranks, num_ranks))
    last_R = np.full(num_ranks, -1)
    for t in range(rank_TK.shape[0]):
        for k in range(rank_TK.shape[1]):
            rank = rank_TK[t, k]
            if rank < 0:
                continue
            if not (only_distinct and last_R[rank] == t):
                copies_SR[source_T[t], rank] += 1.0
            last_R[rank] = t
    for rank in range(num_ranks):
        copies_SR[rank, rank] = 0.0
    return copies_SR


@jit
def count_arrivals(rank_TK: Ints, num_ranks: int) -> Floats:
    """Count tokens that have experts on each rank, ``[R]``."""
    arrivals_R = np.zeros(num_ranks)
    last_R = np.full(num_ranks, -1)
    for t in range(rank_TK.shape[0]):
        for k in range(rank_TK.shape[1]):
            rank = rank_TK[t, k]
            if rank >= 0 and last_R[rank] != t:
                arrivals_R[rank] += 1.0
                last_R[rank] = t
    return arrivals_R


@jit
def count_stays(rank_TK: Ints, source_T: Ints, num_ranks: int) -> Floats:
    """Count tokens of each rank that have experts on their own rank, ``[R]``."""
    stays_R = np.zeros(num_ranks)
    for t in range(rank_TK.shape[0]):
        for k in range(rank_TK.shape[1]):
            if rank_TK[t, k] == source_T[t]:
                stays_R[source_T[t]] += 1.0
                break
    return stays_R


@jit
def count_forwarded(rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
    """Count copies where each other node gets one, on the rank of the source's own position, which
    forwards it inside the node. Ranks of a node are neighbours.
    """
    num_ranks, num_nodes = len(node_R), node_R.max() + 1
    copies_SR = np.zeros((num_ranks, num_ranks))
    last_R, last_N = np.full(num_ranks, -1), np.full(num_nodes, -1)
    first_N, size_N = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
    for rank in range(num_ranks):
        node = node_R[rank]
        if size_N[node] == 0:
            first_N[node] = rank
        size_N[node] += 1
    for t in range(rank_TK.shape[0]):
        source = source_T[t]
        position = source - first_N[node_R[source]]
        for k in range(rank_TK.shape[1]):
            rank = rank_TK[t, k]
            if rank < 0 or last_R[rank] == t:
                continue
            last_R[rank] = t
            node = node_R[rank]
            relay = source
            if node != node_R[source]:
                relay = first_N[node] + position % size_N[node]
                if last_N[node] != t:
                    last_N[node] = t
                    copies_SR[source, relay] += 1.0
            copies_SR[relay, rank] += 1.0
    for rank in range(num_ranks):
        copies_SR[rank, rank] = 0.0
    return copies_SR
