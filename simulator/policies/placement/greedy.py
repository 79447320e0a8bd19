"""Placement of the heaviest expert first, each to the least loaded rank: balance without copies."""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.policies.placement import Placed, in_blocks, slots_per_rank


class Greedy(Frozen):
    """Longest processing time first (Graham 1969), with as many slots on every rank as can be.

    Experts are taken from the heaviest down; each goes to the least loaded rank that has a free
    slot. A layer keeps the contiguous order where that is at least as good, since the rule is not
    optimal.
    """

    def place(self, load_LE: Floats, num_ranks: int, rng: np.random.Generator) -> Placed:
        num_layers, num_experts = load_LE.shape
        slots_R = slots_per_rank(num_experts, num_ranks)
        contiguous_LE = np.tile(np.repeat(np.arange(num_ranks), slots_R), (num_layers, 1))
        rank_LE = _heaviest_first(load_LE, num_ranks)
        is_better_L = _busiest(load_LE, rank_LE, num_ranks) < _busiest(
            load_LE, contiguous_LE, num_ranks
        )
        rank_LE = np.where(is_better_L[:, None], rank_LE, contiguous_LE)
        # Any ranks may have got the extra slots; ranks are alike, so they are renamed to put the
        # larger ones first.
        size_LR = (rank_LE[:, :, None] == np.arange(num_ranks)).sum(axis=1)
        name_LR = np.argsort(np.argsort(-size_LR, axis=1, kind="stable"), axis=1, kind="stable")
        rank_LE = np.take_along_axis(name_LR, rank_LE, axis=1)
        return in_blocks(np.argsort(rank_LE, axis=1, kind="stable"), num_ranks)


def _heaviest_first(load_LE: Floats, num_ranks: int) -> Ints:
    """Place the heaviest experts first: the rank of every expert, ``[L, E]``; all layers advance
    together.
    """
    num_layers, num_experts = load_LE.shape
    base, num_larger = divmod(num_experts, num_ranks)
    layers = np.arange(num_layers)
    rank_LE = np.empty((num_layers, num_experts), dtype=np.int64)
    load_LR = np.zeros((num_layers, num_ranks))
    used_LR = np.zeros((num_layers, num_ranks), dtype=np.int64)
    for expert_L in np.argsort(-load_LE, axis=1, kind="stable").T:
        # A rank may take one more than the base only while fewer than num_larger ranks have done
        # so.
        may_exceed_L = (used_LR > base).sum(axis=1) < num_larger
        is_free_LR = used_LR < base + may_exceed_L[:, None]
        rank_L = np.where(is_free_LR, load_LR, np.inf).argmin(axis=1)
        rank_LE[layers, expert_L] = rank_L
        load_LR[layers, rank_L] += load_LE[layers, expert_L]
        used_LR[layers, rank_L] += 1
    return rank_LE


def _busiest(load_LE: Floats, rank_LE: Ints, num_ranks: int) -> Floats:
    """Load of the busiest rank of every layer, ``[L]``."""
    is_on_LER = rank_LE[:, :, None] == np.arange(num_ranks)
    busiest_L: Floats = np.einsum("le,ler->lr", load_LE, is_on_LER).max(axis=1)
    return busiest_L
