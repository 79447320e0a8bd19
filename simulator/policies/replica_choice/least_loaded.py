"""Copies on the rank that has got the fewest pairs so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from simulator.base.arrays import Ints
from simulator.base.frozen import Frozen
from simulator.base.jit import jit
from simulator.policies.replica_choice import Copies, Origins, ReplicaChooser


class LeastLoaded(Frozen):
    """Each pair goes to the copy whose rank the token's own rank sends the fewest pairs of the step
    so far, those of all experts without copies included; of several to the one whose turn it is.

    A rank knows its own tokens only, so that no count is exchanged before tokens are; where every
    rank has every token, all are counted.
    """

    sees_load: ClassVar[bool] = True

    def prepare(self, copies: Copies) -> ReplicaChooser:
        return _LeastLoaded(copies)


@dataclass(frozen=True)
class _LeastLoaded:
    copies: Copies

    def choose(self, ids_TK: Ints, origins: Origins) -> Ints:
        slot_EC, count_E, rank_P, node_R = self.copies
        sent_SR = np.zeros((int(origins.source_T.max(initial=0)) + 1, len(node_R)), np.int64)
        position_T, source_T, _ = origins
        return np.asarray(_choose(ids_TK, position_T, source_T, slot_EC, count_E, rank_P, sent_SR))


@jit
def _choose(
    ids_TK: Ints,
    position_T: Ints,
    source_T: Ints,
    slot_EC: Ints,
    count_E: Ints,
    rank_P: Ints,
    sent_SR: Ints,
) -> Ints:
    """Choose the slot of every pair; ``sent_SR`` counts the pairs that each source sends to each
    rank.
    """
    slot_TK = np.full(ids_TK.shape, -1, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            if ids_TK[t, k] >= 0 and count_E[ids_TK[t, k]] == 1:
                slot_TK[t, k] = slot_EC[ids_TK[t, k], 0]
                sent_SR[source_T[t], rank_P[slot_TK[t, k]]] += 1
    for t in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            expert = ids_TK[t, k]
            if expert < 0 or count_E[expert] == 1:
                continue
            best = slot_EC[expert, position_T[t] % count_E[expert]]
            for c in range(count_E[expert]):
                slot = slot_EC[expert, c]
                if sent_SR[source_T[t], rank_P[slot]] < sent_SR[source_T[t], rank_P[best]]:
                    best = slot
            slot_TK[t, k] = best
            sent_SR[source_T[t], rank_P[best]] += 1
    return slot_TK
