"""Slots that a step's excess tokens are spilled to, beside those that a placement has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit
from simulator.policies.spilling import SpillingPolicy
from simulator.policies.spilling_contract import spill_pairs
from simulator.work.slots import SlotTable


class SpilledTokens(NamedTuple):
    """Tokens of one layer in one step, some of which other ranks compute than those of their
    experts.
    """

    slot_TK: NDArray[np.int64]
    """Slot of every token-expert pair."""
    slots: SlotTable
    """Slots of the placement, and behind them one for each spill."""
    experts_SR: NDArray[np.float64]
    """Experts whose weights each expert-parallel rank sends to each other one, ``[R, R]``."""


def spill_tokens(
    policy: SpillingPolicy, slots: SlotTable, slot_TK: NDArray[np.int64], scale: float
) -> SpilledTokens:
    """Spill the excess tokens of a layer: of each slot its last ones.

    Args:
        scale: pairs of the step that each pair here stands for.
    """
    num_slots, num_ranks = len(slots.rank_P), slots.num_ranks
    found_P = np.bincount(slot_TK.ravel() + 1, minlength=num_slots + 1)[1:]
    pairs_P = np.rint(found_P * scale).astype(np.int64)
    spills = spill_pairs(policy, pairs_P, slots.rank_P, num_ranks)
    spilled_P = np.bincount(spills.slot_X, minlength=num_slots)
    order_X = np.argsort(spills.slot_X, kind="stable")
    first_P = np.cumsum(spilled_P) - spilled_P
    quota_X = np.rint(spills.pairs_X / scale).astype(np.int64)
    moved_TK = _move(slot_TK, num_slots, spilled_P, first_P, order_X, quota_X)
    experts_SR = np.zeros((num_ranks, num_ranks))
    np.add.at(experts_SR, (slots.rank_P[spills.slot_X], spills.rank_X), 1.0)
    table = SlotTable(np.append(slots.rank_P, spills.rank_X), num_ranks)
    return SpilledTokens(moved_TK, table, experts_SR)


@jit
def _move(
    slot_TK: NDArray[np.int64],
    num_slots: int,
    spilled_P: NDArray[np.int64],
    first_P: NDArray[np.int64],
    order_X: NDArray[np.int64],
    quota_X: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Move pairs from the end of the batch on, spill after spill of their slot."""
    moved_TK = slot_TK.copy()
    turn_P = np.zeros(num_slots, dtype=np.int64)
    left_X = quota_X.copy()
    for t in range(slot_TK.shape[0] - 1, -1, -1):
        for k in range(slot_TK.shape[1]):
            slot = slot_TK[t, k]
            if slot < 0:
                continue
            while turn_P[slot] < spilled_P[slot]:
                spill = order_X[first_P[slot] + turn_P[slot]]
                if left_X[spill] > 0:
                    left_X[spill] -= 1
                    moved_TK[t, k] = num_slots + spill
                    break
                turn_P[slot] += 1
    return moved_TK
