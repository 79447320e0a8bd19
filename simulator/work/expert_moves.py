"""Copies of expert weights that travel between ranks when experts are rebalanced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Bools, Ints
from simulator.policies.placement import Placed


class ExpertMoves(NamedTuple):
    """Experts that ranks send to each other, ordered by layer and expert."""

    layer_M: Ints
    expert_M: Ints
    source_M: Ints
    """Rank that each comes from."""
    destination_M: Ints
    """Rank that each goes to."""


def list_expert_moves(before: Placed, after: Placed, node_R: Ints) -> ExpertMoves:
    """List the experts that each rank sends to each other one.

    A rank keeps what it has. What it lacks comes from a rank that has it: one on its own node if
    there is one, and of several each in its turn, so that the copies of an expert share the work.

    Args:
        node_R: node of every rank.
    """
    moves = [
        (layer, expert, source, destination)
        for layer, expert_P in enumerate(after.expert_LP)
        for expert, holds_R, wants_R in _list_wanted(before, after, layer, expert_P)
        for source, destination in _list_senders(np.flatnonzero(holds_R), wants_R, node_R)
    ]
    return ExpertMoves(*np.array(moves, dtype=np.int64).reshape(-1, 4).T)


def count_expert_moves(before: Placed, after: Placed, node_R: Ints) -> Ints:
    """Count the experts that each rank sends to each other one, over all layers, ``[R, R]``;
    arguments are those of :func:`list_expert_moves`.
    """
    moves = list_expert_moves(before, after, node_R)
    moves_SR = np.zeros((after.num_ranks, after.num_ranks), dtype=np.int64)
    np.add.at(moves_SR, (moves.source_M, moves.destination_M), 1)
    return moves_SR


def _list_wanted(
    before: Placed, after: Placed, layer: int, expert_P: Ints
) -> Iterator[tuple[int, Bools, Bools]]:
    """List the experts of a layer that some rank lacks, each with the ranks that have it and those
    that lack it.
    """
    has_RE = _find_holders(before, layer)
    wants_RE = _find_holders(after, layer) & ~has_RE
    for expert in np.unique(expert_P[wants_RE[:, expert_P].any(axis=0)]):
        yield int(expert), has_RE[:, expert], wants_RE[:, expert]


def _find_holders(placed: Placed, layer: int) -> Bools:
    """Whether each rank has each expert of a layer, ``[R, E]``."""
    expert_P, rank_P = placed.expert_LP[layer], placed.rank_LP[layer]
    has_RE = np.zeros((placed.num_ranks, int(expert_P.max()) + 1), dtype=np.bool_)
    has_RE[rank_P, expert_P] = True
    return has_RE


def _list_senders(senders: Ints, wants_R: Bools, node_R: Ints) -> Iterator[tuple[int, int]]:
    """List the rank that sends an expert to each rank that lacks it, as pairs."""
    for turn, receiver in enumerate(np.flatnonzero(wants_R)):
        near = senders[node_R[senders] == node_R[receiver]]
        chosen = near if len(near) else senders
        yield int(chosen[turn % len(chosen)]), int(receiver)
