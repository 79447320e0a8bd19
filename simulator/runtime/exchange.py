"""Exchange of tokens with their experts' ranks: rows that a rank sends, and tokens in the rows it
receives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.policies.dispatch import Rows
from simulator.runtime.job import TORCH_DTYPES, Job
from simulator.work.slots import spread_over_parts


class ExpertMap:
    """Ranks and local slots of one MoE layer's experts."""

    def __init__(self, job: Job, moe_layer: int) -> None:
        if job.experts is None or job.moe is None:
            raise ValueError(f"{job.model.name} has no routed experts")
        self.dispatch, self.node_R, self.moe_tp = (
            job.experts.dispatch,
            job.node_R,
            job.layout.moe_tp,
        )
        placed = job.experts.placed
        self.slots = job.slot_map(moe_layer)
        self._expert_P = placed.expert_LP[moe_layer]
        self._ep_rank_P = placed.rank_LP[moe_layer]
        self._local_P1 = np.full(len(self._ep_rank_P) + 1, -1)  # its last is found by -1
        for ep_rank in range(placed.num_ranks):
            own_P = np.flatnonzero(self._ep_rank_P == ep_rank)
            self._local_P1[own_P] = np.arange(len(own_P))

    def experts_of(self, rank: int) -> list[int]:
        """Expert of each slot of a rank, in the order of its local slots."""
        return [int(expert) for expert in self._expert_P[self._ep_rank_P == rank // self.moe_tp]]

    def choices(
        self,
        topk_ids_TK: NDArray[np.int64],
        source_T: NDArray[np.int64] | None,
        first_token: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rank and local slot of every choice, ``[T, K x moe_tp]``, -1 where it was dropped: an
        expert that is split must be reached on each of its ranks.

        Args:
            source_T: rank that each token is on; ``None`` where every rank has every token.
            first_token: index of the first token in the whole batch.
        """
        slot_TK = self.slots.slots(topk_ids_TK, source_T, first_token)
        rank_TK = spread_over_parts(self.slots.ranks(slot_TK), self.moe_tp)
        return rank_TK, np.repeat(self._local_P1[slot_TK], self.moe_tp, axis=1)


@dataclass(frozen=True)
class Outgoing:
    """Rows that a rank sends, in the order of the receiving ranks."""

    payload_NB: Tensor
    """``uint8``: the hidden vector, then local slots, then weights."""
    token_N: Tensor
    """Token of each row."""
    rows_R: list[int]
    """Rows for each rank."""


@dataclass(frozen=True)
class Incoming:
    """Tokens that a rank received, by slot."""

    x_PH: Tensor
    """Hidden vector of each pair of row and slot, in the order of slots."""
    rows_P: list[int]
    """Number of pairs of each slot."""
    row_P: Tensor
    """Row that each pair comes from."""
    weight_P: Tensor
    """Weight of each pair."""
    num_rows: int


class Packer:
    """Packing of rows into bytes, so that one exchange carries vectors, slots and weights."""

    def __init__(self, job: Job) -> None:
        self.hidden_size = job.model.hidden_size
        self.out_dtype = TORCH_DTYPES[job.dispatch_dtype]
        self.back_dtype = TORCH_DTYPES[job.combine_dtype]
        self.compute_dtype = TORCH_DTYPES[job.dtype]

    @cached_property
    def _hidden_bytes(self) -> int:
        return self.hidden_size * self.out_dtype.itemsize

    def pack(
        self,
        x_TH: Tensor,
        weight_TK: Tensor,
        local_TK: NDArray[np.int64],
        rows: Rows,
        num_ranks: int,
    ) -> Outgoing:
        """Pack the rows for other ranks.

        Args:
            weight_TK: weights of the token's experts; where experts are split, a column for each
                part.
        """
        order = np.argsort(rows.rank_N, kind="stable")
        token_N, choice_NW = rows.token_N[order], rows.choice_NW[order]
        is_used_NW = choice_NW >= 0
        at_NW = np.where(is_used_NW, choice_NW, 0)
        slot_NW = np.where(is_used_NW, local_TK[token_N[:, None], at_NW], -1).astype(np.int32)
        token, at, slot = (
            torch.from_numpy(array).to(x_TH.device) for array in (token_N, at_NW, slot_NW)
        )
        weight_NW = weight_TK.float()[token[:, None], at]
        parts = (x_TH.to(self.out_dtype)[token], slot, weight_NW)
        payload = (
            torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
            if len(token_N)
            else None
        )
        if payload is None:
            payload = x_TH.new_empty((0, self.row_bytes(choice_NW.shape[1])), dtype=torch.uint8)
        return Outgoing(payload, token, np.bincount(rows.rank_N, minlength=num_ranks).tolist())

    def row_bytes(self, width: int) -> int:
        """Bytes of one row with places for ``width`` experts."""
        return self._hidden_bytes + 8 * width

    def unpack(self, payload_NB: Tensor, num_slots: int) -> Incoming:
        """Unpack the tokens of this rank's slots, sorted by slot."""
        num_rows, num_bytes = payload_NB.shape
        width = (num_bytes - self._hidden_bytes) // 8
        hidden, slots, weights = payload_NB.split([self._hidden_bytes, 4 * width, 4 * width], dim=1)
        slot_F = slots.contiguous().view(torch.int32).flatten().long()
        used = (slot_F >= 0).nonzero().squeeze(1)
        order = used[slot_F[used].argsort(stable=True)]
        row_P = order // width
        x_NH = hidden.contiguous().view(self.out_dtype).to(self.compute_dtype)
        return Incoming(
            x_PH=x_NH[row_P],
            rows_P=slot_F[order].bincount(minlength=num_slots).tolist(),
            row_P=row_P,
            weight_P=weights.contiguous().view(torch.float32).flatten()[order],
            num_rows=num_rows,
        )

    def answer(self, expert_PH: Tensor, incoming: Incoming) -> Tensor:
        """Weighted sum of each row's experts, ``[N, H]``, in the combine format."""
        weighted = expert_PH * incoming.weight_P.to(expert_PH.dtype)[:, None]
        result = expert_PH.new_zeros(incoming.num_rows, self.hidden_size).index_add_(
            0, incoming.row_P, weighted
        )
        return result.to(self.back_dtype)

    def gather(self, answer_NH: Tensor, outgoing: Outgoing, num_tokens: int) -> Tensor:
        """Sum of each token's rows, ``[T, H]``."""
        result = answer_NH.new_zeros(num_tokens, self.hidden_size, dtype=self.compute_dtype)
        return result.index_add_(0, outgoing.token_N, answer_NH.to(self.compute_dtype))
