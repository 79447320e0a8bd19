"""Expert slots that tokens reach, those that spilled tokens reach among them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Floats, Ints
from simulator.base.jit import jit
from simulator.policies.contracts import choose_replicas, prepare_replica_choice, spill_pairs
from simulator.policies.overflow import RoutedTokens
from simulator.policies.placement import Placed
from simulator.policies.replica_choice import Copies, Origins, ReplicaChoicePolicy
from simulator.policies.replica_choice.turns import Turns
from simulator.policies.spilling import SpillingPolicy


def spread_over_parts(rank_TK: Ints, moe_tp: int) -> Ints:
    """Ranks that each token must reach, ``[T, K x moe_tp]``, from its experts' expert-parallel
    ranks ``[T, K]``: a split expert lies on ``moe_tp`` neighbouring ranks.
    """
    if moe_tp == 1:
        return rank_TK
    num_tokens, top_k = rank_TK.shape
    part_TKM = rank_TK[..., None] * moe_tp + np.arange(moe_tp)
    np.maximum(part_TKM, -1, out=part_TKM)  # of a pair that was dropped
    return part_TKM.reshape(num_tokens, top_k * moe_tp)


class SlotTable:
    """Ranks of slots, ready for counting."""

    def __init__(self, rank_P: Ints, num_ranks: int) -> None:
        """Prepare the slots of ``num_ranks`` expert-parallel ranks."""
        self.rank_P, self.num_ranks = rank_P, num_ranks
        self._rank_P1 = np.append(rank_P, -1)  # its last is found by -1
        order = np.argsort(rank_P, kind="stable")
        slots_R = np.bincount(rank_P, minlength=num_ranks)
        self._group_P = np.empty(len(order), dtype=np.int64)
        self._group_P[order] = _count_up(slots_R)
        self._num_groups = int(slots_R.max())

    def ranks(self, slot_TK: Ints) -> Ints:
        """Expert-parallel rank of every token-expert pair, ``[T, K]``."""
        return np.asarray(self._rank_P1.take(slot_TK))

    def rows(self, slot_TK: Ints, scale: float = 1.0) -> Floats:
        """Tokens of every slot, ``rows_RG`` (``G`` slots of a rank), times ``scale`` and rounded; a
        slot with any token keeps at least one.
        """
        return _count_rows(
            slot_TK, self.rank_P, self._group_P, self.num_ranks, self._num_groups, scale
        )


class SlotMap(SlotTable):
    """Ranks and slots of one layer's experts, ready for counting."""

    def __init__(
        self,
        placed: Placed,
        layer: int,
        num_experts: int,
        choice: ReplicaChoicePolicy | None = None,
        node_R: Ints | None = None,
        moe_tp: int = 1,
    ) -> None:
        """Prepare a layer.

        Args:
            choice: among the copies of an expert; by default they take turns.
            node_R: fast domain of each expert-parallel rank, ``[R]``; by default all are in one.
            moe_tp: ranks that each expert is split over, which are one expert-parallel rank.
        """
        super().__init__(placed.rank_LP[layer], placed.num_ranks)
        self._moe_tp = moe_tp
        expert_P = placed.expert_LP[layer]
        self.num_experts = num_experts
        self._expert_P = expert_P
        copies_E = np.bincount(expert_P, minlength=num_experts)
        self._copies_E1 = np.append(copies_E, 1)
        self._slot_E1C = np.full((num_experts + 1, int(copies_E.max())), -1, dtype=np.int64)
        slot_P = np.argsort(expert_P, kind="stable")  # copies of an expert side by side
        self._slot_E1C[expert_P[slot_P], _count_up(copies_E)] = slot_P
        nodes = np.zeros(self.num_ranks, dtype=np.int64) if node_R is None else node_R
        copies = Copies(self._slot_E1C, self._copies_E1, self.rank_P, nodes)
        self._chooser = prepare_replica_choice(choice or Turns(), copies)

    def slots(
        self, topk_ids_TK: NDArray[np.integer], source_T: Ints | None = None, first_token: int = 0
    ) -> Ints:
        """Slot of every token-expert pair, ``[T, K]``.

        Args:
            source_T: rank that each token is on; by default every rank has every token.
            first_token: position of the first token in the whole batch.
        """
        if self._slot_E1C.shape[1] == 1:
            return np.asarray(self._slot_E1C.take(topk_ids_TK))
        position_T = first_token + np.arange(len(topk_ids_TK))
        if source_T is None:
            origins = Origins(position_T, np.zeros_like(position_T), position_T % self.num_ranks)
        else:
            origins = Origins(position_T, source_T, source_T // self._moe_tp)
        return choose_replicas(self._chooser, topk_ids_TK.astype(np.int64), origins)

    def route_tokens(
        self,
        ids_TJ: NDArray[np.integer],
        top_k: int,
        source_T: Ints | None = None,
        first_token: int = 0,
    ) -> RoutedTokens:
        """Describe tokens to an overflow policy, with the rank of each choice; arguments are those
        of :meth:`slots`.
        """
        rank_TJ = self.ranks(self.slots(ids_TJ, source_T, first_token))
        router_T = np.zeros(len(ids_TJ), dtype=np.int64) if source_T is None else source_T
        return RoutedTokens(ids_TJ, rank_TJ, top_k, router_T, self.num_experts, self.num_ranks)

    def share_tokens(self, tokens_E: Floats) -> Floats:
        """Tokens of every slot, ``rows_RG`` (``G`` slots of a rank), from the tokens of each
        expert: its copies take turns, so they share evenly.
        """
        number_P = np.zeros(len(self.rank_P))
        for turn in range(self._slot_E1C.shape[1]):
            has_E = self._slot_E1C[:, turn] >= 0
            number_P[self._slot_E1C[has_E, turn]] = turn
        tokens_P, copies_P = tokens_E[self._expert_P], self._copies_E1[self._expert_P]
        rows_RG = np.zeros((self.num_ranks, self._num_groups))
        rows_RG[self.rank_P, self._group_P] = np.floor(
            (tokens_P + copies_P - 1 - number_P) / copies_P
        )
        return rows_RG


@jit
def _count_rows(
    slot_TK: Ints, rank_P: Ints, group_P: Ints, num_ranks: int, num_groups: int, scale: float
) -> Floats:
    """Tokens of every slot, at its rank and its place there."""
    rows_RG = np.zeros((num_ranks, num_groups))
    for t in range(slot_TK.shape[0]):
        for k in range(slot_TK.shape[1]):
            slot = slot_TK[t, k]
            if slot >= 0:
                rows_RG[rank_P[slot], group_P[slot]] += 1.0
    if scale != 1.0:
        for rank in range(num_ranks):
            for group in range(num_groups):
                if rows_RG[rank, group] > 0.0:
                    rows_RG[rank, group] = max(np.rint(rows_RG[rank, group] * scale), 1.0)
    return rows_RG


def _count_up(counts: Ints) -> Ints:
    """Number the members of each group from 0: ``0, 1, ...`` up to each count, one group after the
    other.

    >>> _count_up(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    firsts = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(firsts, counts)


class SpilledTokens(NamedTuple):
    """Tokens of one layer in one step, some of which other ranks compute than those of their
    experts.
    """

    slot_TK: Ints
    """Slot of every token-expert pair."""
    slots: SlotTable
    """Slots of the placement, and behind them one for each spill."""
    experts_SR: Floats
    """Experts whose weights each expert-parallel rank sends to each other one, ``[R, R]``."""


def spill_tokens(
    policy: SpillingPolicy, slots: SlotTable, slot_TK: Ints, scale: float
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
    slot_TK: Ints, num_slots: int, spilled_P: Ints, first_P: Ints, order_X: Ints, quota_X: Ints
) -> Ints:
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
