"""Exchanges of a training pass: tokens go to the ranks of their experts and outputs come back, and
gradients take the same ways in reverse, so that an MoE layer has four exchanges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.policies.contracts import list_rows
from simulator.runtime.blocks import ExpertLayer
from simulator.runtime.timeline import Timeline
from simulator.runtime.transport import Transport


@dataclass(frozen=True)
class Wires:
    """Rank's links in the exchanges of one MoE layer."""

    transport: Transport
    timeline: Timeline
    layer: int
    first_rank: int
    """First rank of the block that shares the layer's experts."""
    num_ranks: int
    """Ranks of all blocks, which meet in every exchange."""

    def widen(self, rows_R: list[int]) -> list[int]:
        """Rows for each rank of all blocks, from those for each rank of this one."""
        widened = [0] * self.num_ranks
        widened[self.first_rank : self.first_rank + len(rows_R)] = rows_R
        return widened

    def swap(
        self, phase: str, rows_NH: Tensor, send_R: list[int], receive_R: list[int] | None
    ) -> tuple[Tensor, list[int]]:
        """Exchange rows, and note the computation before it and the exchange."""
        with self.timeline.busy("experts", self.layer):
            rows_NH = rows_NH.contiguous()
        with self.timeline.meet(phase, self.layer):
            return self.transport.all_to_all(rows_NH, send_R, receive_R)


class _Dispatch(torch.autograd.Function):
    """Rows to the ranks of their experts; gradients of vectors and weights back."""

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, weight_NW: Tensor, slot_NW: Tensor, wires: Wires, send_R: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        hidden = x_NH.shape[1]
        # Slots are whole numbers far below 2^24, which single precision holds exactly.
        rows = torch.cat([x_NH, weight_NW, slot_NW.to(x_NH.dtype)], dim=1)
        received, receive_R = wires.swap("dispatch", rows, send_R, None)
        x, weight, slot = received.split([hidden, weight_NW.shape[1], slot_NW.shape[1]], dim=1)
        ctx.wires, ctx.send_R, ctx.receive_R, ctx.hidden = wires, send_R, receive_R, hidden
        slot = slot.long()
        ctx.mark_non_differentiable(slot)
        return x.contiguous(), weight.contiguous(), slot, receive_R

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        rows = torch.cat(gradients[:2], dim=1)
        returned, _ = ctx.wires.swap("dispatch", rows, ctx.receive_R, ctx.send_R)
        return returned[:, : ctx.hidden], returned[:, ctx.hidden :], None, None, None


class _Combine(torch.autograd.Function):
    """Outputs of experts back to their tokens' ranks; their gradients to the experts."""

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, wires: Wires, send_R: list[int], receive_R: list[int]
    ) -> Tensor:
        ctx.wires, ctx.send_R, ctx.receive_R = wires, send_R, receive_R
        return wires.swap("combine", x_NH, send_R, receive_R)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        returned, _ = ctx.wires.swap("combine", gradients[0], ctx.receive_R, ctx.send_R)
        return returned, None, None, None


def compute_experts(
    layer: ExpertLayer,
    x_TH: Tensor,
    weight_TK: Tensor,
    topk_ids_TK: NDArray[np.int64],
    first_token: int,
    wires: Wires,
) -> Tensor:
    """Compute the experts of a rank's tokens on the ranks that hold them, without an exchange where
    that is the rank itself; differentiable.

    Args:
        layer: rank's share of the MoE layer.
        first_token: index of the rank's first token in the whole batch.

    Returns:
        Weighted sum of each token's experts, ``[T, H]``.
    """
    source_T = np.full(len(x_TH), layer.rank)
    rank_TK, local_TK = layer.map.choices(topk_ids_TK, source_T, first_token)
    rows = list_rows(layer.map.dispatch, rank_TK, layer.map.node_R)
    order = np.argsort(rows.rank_N, kind="stable")
    token_N, choice_NW = rows.token_N[order], rows.choice_NW[order]
    at_NW = np.maximum(choice_NW, 0)
    slot_NW = np.where(choice_NW >= 0, local_TK[token_N[:, None], at_NW], -1)
    token, at, slot = (torch.from_numpy(array) for array in (token_N, at_NW, slot_NW))
    x_NH, weight_NW = x_TH[token], weight_TK[token[:, None], at]
    if len(layer.map.node_R) == 1:
        returned_NH = _answer(layer, x_NH, weight_NW, slot)
    else:
        send_R = wires.widen(np.bincount(rows.rank_N, minlength=len(layer.map.node_R)).tolist())
        x_NH, weight_NW, slot, receive_R = _Dispatch.apply(x_NH, weight_NW, slot, wires, send_R)
        answer_NH = _answer(layer, x_NH, weight_NW, slot)
        returned_NH = _Combine.apply(answer_NH, wires, receive_R, send_R)
    return x_TH.new_zeros(x_TH.shape).index_add(0, token, returned_NH)


def _answer(layer: ExpertLayer, x_NH: Tensor, weight_NW: Tensor, slot_NW: Tensor) -> Tensor:
    """Weighted sum of the experts of each row that came, ``[N, H]``."""
    slot_F = slot_NW.flatten()
    used = (slot_F >= 0).nonzero().squeeze(1)
    order = used[slot_F[used].argsort(stable=True)]
    row_P = order // max(slot_NW.shape[1], 1)
    rows_P = slot_F[order].bincount(minlength=len(layer.experts.expert_P)).tolist()
    expert_PH = layer.experts(x_NH[row_P], rows_P) * weight_NW.flatten()[order][:, None]
    return x_NH.new_zeros(x_NH.shape).index_add(0, row_P, expert_PH)
