"""Choice among the copies of experts, pair by pair."""

from collections import Counter

import numpy as np

from simulator.policies.replica_choice.least_loaded import LeastLoaded
from simulator.policies.replica_choice.nearest import Nearest


def choose_by_loops(policy, expert_P, rank_P, node_R, ids_TK, origins):
    """Slot of every pair, -1 where it was dropped."""
    slots = {e: np.flatnonzero(expert_P == e).tolist() for e in set(expert_P.tolist())}
    if isinstance(policy, Nearest):
        return _choose_nearest(slots, rank_P, node_R, ids_TK, origins.rank_T)
    slot_TK, sent = np.full(ids_TK.shape, -1), Counter()
    is_least = isinstance(policy, LeastLoaded)
    for copied in (False, True):
        for t, ids_K in enumerate(ids_TK.tolist()):
            for k, expert in enumerate(ids_K):
                if expert < 0 or (len(slots[expert]) > 1) != copied:
                    continue
                own = slots[expert]
                turn, source = origins.position_T[t] % len(own), int(origins.source_T[t])
                in_turn = [own[turn], *own]
                if is_least:
                    slot = min(in_turn, key=lambda s: sent[source, rank_P[s]])
                else:
                    slot = own[turn]
                slot_TK[t, k] = slot
                sent[source, rank_P[slot]] += 1
    return slot_TK


def _choose_nearest(slots, rank_P, node_R, ids_TK, rank_T):
    """Ranks with the same nearest copies of an expert take turns."""
    slot_of, seen = {}, Counter()
    for expert, own in slots.items():
        for rank in range(len(node_R)):
            near = [s for s in own if rank_P[s] == rank]
            near = near or [s for s in own if node_R[rank_P[s]] == node_R[rank]] or own
            slot_of[rank, expert] = near[seen[expert, tuple(near)] % len(near)]
            seen[expert, tuple(near)] += 1
    return np.array(
        [
            [slot_of[rank, e] if e >= 0 else -1 for e in ids_K]
            for rank, ids_K in zip(rank_T.tolist(), ids_TK.tolist(), strict=True)
        ],
        dtype=np.int64,
    ).reshape(ids_TK.shape)
