"""Recovery of a replica that goes on with the ranks it has left (elastic expert parallelism)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Ints
from simulator.base.frozen import Frozen
from simulator.base.quantities import BytesPerSecond, Seconds
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss, Requests


class Elastic(Frozen):
    """Data-parallel groups without a lost GPU go on, and the requests of the others are sent again.

    Experts of which the living ranks have a copy are there; others are loaded in place of copies
    that experts have more than one of, as evenly over ranks as possible. Where there are too few
    slots for all experts the replica stops. Repaired ranks join again once they have started.

    Published: SGLang with 256 redundant experts of DeepSeek-V3.2 on 32 GPUs is interrupted for 6.2
    to 6.8 s whether one rank or sixteen are lost (LMSYS, "Elastic EP in SGLang", March 2026), of
    which the defaults are a part each.
    """

    detection_s: Seconds = 5.0
    """Seconds until a failure is noticed; until then the replica hangs, and gets requests."""
    regroup_s: Seconds = 1.2
    """Seconds in which ranks form a new group, without those that are lost or with those that join;
    no step is formed meanwhile."""
    startup_s: Seconds = 150.0
    """Seconds from the moment at which a GPU works again until its rank joins: process, weights and
    graphs, while the others serve. Published for a whole group: two to three minutes."""
    load_bandwidth: BytesPerSecond = 4.0e10
    """Bytes per second at which a rank loads experts that no living rank has, all ranks at once;
    assumed: two thirds of PCIe 5.0's 63 GB/s, from host memory."""
    requests: Requests = "resume"
    """Fate of the requests of lost ranks: ``resume`` elsewhere with the output tokens that were
    sent, ``retry`` elsewhere from the beginning, or ``lose`` them."""

    def interrupt_s(self, loaded_bytes: float) -> float:
        return self.regroup_s + loaded_bytes / self.load_bandwidth

    def shrink(self, loss: Loss) -> Placed | None:
        ranks_per_group = loss.placed.num_ranks // len(loss.lost_D)
        is_left_R = np.repeat(~loss.lost_D, ranks_per_group)
        number_R = np.cumsum(is_left_R) - 1
        layers = []
        for expert_P, rank_P, load_E in zip(
            loss.placed.expert_LP, loss.placed.rank_LP, loss.load_LE, strict=True
        ):
            is_left_P = is_left_R[rank_P]
            left_P, ranks_P = expert_P[is_left_P].copy(), number_R[rank_P[is_left_P]]
            if not _place_missing(left_P, ranks_P, load_E):
                return None
            layers.append((left_P, ranks_P))
        experts, ranks = zip(*layers, strict=True)
        return Placed(np.stack(experts), np.stack(ranks), int(is_left_R.sum()))


def _place_missing(expert_P: Ints, rank_P: Ints, load_E: NDArray[np.floating]) -> bool:
    """Put experts that have no slot in place of copies of others. Returns whether all found one."""
    copies_E = np.bincount(expert_P, minlength=len(load_E))
    missing = np.flatnonzero(copies_E == 0)
    loaded_R = np.zeros(int(rank_P.max()) + 1, dtype=np.int64)
    for expert in missing[np.argsort(-load_E[missing], kind="stable")]:
        spare_P = np.flatnonzero(copies_E[expert_P] > 1)
        if not len(spare_P):
            return False
        # Ranks load at the same time, and the copy that carries least is missed least.
        carried_P = (load_E / np.maximum(copies_E, 1))[expert_P[spare_P]]
        slot = spare_P[np.lexsort((carried_P, loaded_R[rank_P[spare_P]]))[0]]
        copies_E[expert_P[slot]] -= 1
        expert_P[slot] = expert
        copies_E[expert] = 1
        loaded_R[rank_P[slot]] += 1
    return True
