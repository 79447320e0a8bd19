"""Admission of tokens to experts with room, counted pair by pair."""

from collections import Counter

import numpy as np

from simulator.policies.overflow.capacity import Capacity
from simulator.policies.overflow.top_k import FewerExperts


def admit_by_loops(policy, tokens):
    """Experts that compute the tokens, -1 for a pair that is dropped."""
    if isinstance(policy, Capacity):
        return _fill_rooms(policy, tokens)
    admitted_TK = tokens.ids_TJ[:, : tokens.top_k].astype(np.int64)
    if isinstance(policy, FewerExperts):
        for token, source in enumerate(tokens.source_T):
            if (tokens.source_T == source).sum() > policy.above_tokens:
                admitted_TK[token, policy.top_k :] = -1
    return admitted_TK


def _fill_rooms(policy, tokens):
    """Own choices of all tokens first, then the next ones of those that found no room."""
    by_rank = policy.per == "rank"
    holders = tokens.num_ranks if by_rank else tokens.num_experts
    holder_TJ = tokens.rank_TJ if by_rank else tokens.ids_TJ
    pairs_S = tokens.tokens_S * tokens.top_k
    room_S = [int(np.ceil(pairs / holders * policy.factor)) for pairs in pairs_S]
    taken = Counter()

    def takes(token, choice):
        """Whether the holder of a choice has room for it, which it then takes."""
        source = int(tokens.source_T[token])
        key = source, int(holder_TJ[token, choice])
        has_room = taken[key] < room_S[source]
        taken[key] += has_room
        return has_room

    admitted_TK = np.full((len(tokens.ids_TJ), tokens.top_k), -1)
    for token, ids_J in enumerate(tokens.ids_TJ.tolist()):
        for k in range(tokens.top_k):
            if takes(token, k):
                admitted_TK[token, k] = ids_J[k]
    for token, ids_J in enumerate(tokens.ids_TJ.tolist()):
        untried = iter(range(tokens.top_k, len(ids_J)))
        for k in np.flatnonzero(admitted_TK[token] < 0):
            found = next((choice for choice in untried if takes(token, choice)), None)
            admitted_TK[token, k] = -1 if found is None else ids_J[found]
    return admitted_TK
