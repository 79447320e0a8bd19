"""Copies of an expert take turns by the token's position: every copy gets as many tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Ints
from simulator.base.frozen import Frozen
from simulator.policies.replica_choice import Copies, Origins, ReplicaChooser


class Turns(Frozen):
    """Wherever a token is, its position in the batch says which copy it goes to (vLLM's
    ``eplb_map_to_physical_and_record``, SGLang's ``--ep-dispatch-algorithm dynamic`` at random).
    """

    def prepare(self, copies: Copies) -> ReplicaChooser:
        return _Turns(copies)


@dataclass(frozen=True)
class _Turns:
    copies: Copies

    def choose(self, ids_TK: Ints, origins: Origins) -> Ints:
        turn_TK = origins.position_T[:, None] % self.copies.count_E[ids_TK]
        return np.asarray(self.copies.slot_EC[ids_TK, turn_TK])
