"""Copies of expert weights that travel between ranks when experts are rebalanced."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.policies.placement import Placed


def count_expert_moves(
    before: Placed, after: Placed, node_R: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count the experts that each rank sends to each other one, over all layers, ``[R, R]``.

    A rank keeps what it has. What it lacks comes from a rank that has it: one on its own node if
    there is one, and of several each in its turn, so that the copies of an expert share the work.

    Args:
        node_R: node of every rank.
    """
    ranks = after.num_ranks
    moves_SR = np.zeros((ranks, ranks), dtype=np.int64)
    for layer, expert_P in enumerate(after.expert_LP):
        has_RE = _find_holders(before, layer)
        wants_RE = _find_holders(after, layer) & ~has_RE
        for expert in np.unique(expert_P[wants_RE[:, expert_P].any(axis=0)]):
            _add_moves(moves_SR, np.flatnonzero(has_RE[:, expert]), wants_RE[:, expert], node_R)
    return moves_SR


def _find_holders(placed: Placed, layer: int) -> NDArray[np.bool_]:
    """Whether each rank has each expert of a layer, ``[R, E]``."""
    expert_P, rank_P = placed.expert_LP[layer], placed.rank_LP[layer]
    has_RE = np.zeros((placed.num_ranks, int(expert_P.max()) + 1), dtype=np.bool_)
    has_RE[rank_P, expert_P] = True
    return has_RE


def _add_moves(
    moves_SR: NDArray[np.int64],
    senders: NDArray[np.int64],
    wants_R: NDArray[np.bool_],
    node_R: NDArray[np.int64],
) -> None:
    for turn, receiver in enumerate(np.flatnonzero(wants_R)):
        near = senders[node_R[senders] == node_R[receiver]]
        chosen = near if len(near) else senders
        moves_SR[chosen[turn % len(chosen)], receiver] += 1
