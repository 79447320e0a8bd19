"""Copies near the token: on its own rank, else in its fast domain, else anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Bools, Ints
from simulator.base.frozen import Frozen
from simulator.policies.replica_choice import Copies, Origins, ReplicaChooser


class Nearest(Frozen):
    """Every rank sends its tokens of an expert to one copy: the one that it has itself, else one in
    its node (its NVLink domain), else any; ranks that have the choice among several take turns.

    SGLang's ``--ep-dispatch-algorithm static``, and the maps by rank of ATOM. Tokens of an expert
    that is on every rank do not travel; a hot copy near many ranks gets more than its share.
    """

    def prepare(self, copies: Copies) -> ReplicaChooser:
        return _Nearest(_find_nearest(copies))


@dataclass(frozen=True)
class _Nearest:
    slot_RE: Ints
    """Slot that each rank's tokens of each expert go to, ``[R, E + 1]``."""

    def choose(self, ids_TK: Ints, origins: Origins) -> Ints:
        return np.asarray(self.slot_RE[origins.rank_T[:, None], ids_TK])


def _find_nearest(copies: Copies) -> Ints:
    """Find the slot that each rank's tokens of each expert go to, ``[R, E + 1]``."""
    ranks = np.arange(copies.num_ranks)
    slot_RE = np.empty((len(ranks), len(copies.count_E)), dtype=np.int64)
    for expert, count in enumerate(copies.count_E):
        own_C = copies.slot_EC[expert, :count]
        if count == 1:
            slot_RE[:, expert] = own_C[0]
            continue
        rank_C = copies.rank_P[own_C]
        is_far_RC = copies.node_R[:, None] != copies.node_R[rank_C]
        distance_RC = is_far_RC + (ranks[:, None] != rank_C).astype(np.int64)
        is_near_RC = distance_RC == distance_RC.min(axis=1, keepdims=True)
        # The n-th rank that has the same choice takes the n-th copy.
        turn_R = _number_alike(is_near_RC) % is_near_RC.sum(axis=1)
        place_RC = np.cumsum(is_near_RC, axis=1) - 1
        slot_RE[:, expert] = own_C[(is_near_RC & (place_RC == turn_R[:, None])).argmax(axis=1)]
    return slot_RE


def _number_alike(is_near_RC: Bools) -> Ints:
    """Number the ranks that have the same choice among copies from 0, ``[R]``."""
    _, kind_R = np.unique(is_near_RC, axis=0, return_inverse=True)
    number_R = np.empty(len(is_near_RC), dtype=np.int64)
    for kind in range(int(kind_R.max()) + 1):
        own = np.flatnonzero(kind_R == kind)
        number_R[own] = np.arange(len(own))
    return number_R
