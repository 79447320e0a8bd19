"""Forward pass of one micro-batch on one rank, through which gradients come back; both ways are
noted in the same operations, the backward ones in reverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from simulator.runtime.blocks import ExpertLayer, RankModel
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.timeline import Timeline
from simulator.runtime.training.exchange import Wires, compute_experts
from simulator.runtime.transport import Transport


class _Mark(torch.autograd.Function):
    """Vectors as they are; when their gradient comes back, the operation behind them is over."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, timeline: Timeline, phase: str, layer: int) -> Tensor:
        ctx.timeline, ctx.phase, ctx.layer = timeline, phase, layer
        return x_TH.view_as(x_TH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        note(ctx.timeline, ctx.phase, ctx.layer)
        return gradients[0], None, None, None


def note(timeline: Timeline, phase: str, layer: int) -> None:
    """Note that a computation ends now."""
    with timeline.busy(phase, layer):
        pass


class MicroBatch:
    """Micro-batch of one rank: its tokens, and where they lie in the whole batch."""

    def __init__(self, ids_QS: Tensor, first_token: int, offset: int) -> None:
        """Cut inputs and targets.

        Args:
            ids_QS: tokens of each sequence and the one behind them.
            first_token: index of the first token in the whole batch.
            offset: index of the whole batch's first token in the pool of expert choices.
        """
        self.inputs_T, self.targets_T = ids_QS[:, :-1].flatten(), ids_QS[:, 1:].flatten()
        self.chunk = Chunk(len(ids_QS), ids_QS.shape[1] - 1, 0)
        self.first_token, self.offset = first_token, offset


class Passes:
    """Forward passes of one rank's part of a model."""

    def __init__(self, model: RankModel, first_rank: int, num_ranks: int) -> None:
        """Prepare passes.

        Args:
            first_rank: of the block that shares the experts.
            num_ranks: of all blocks.
        """
        self.model, self._first_rank, self._num_ranks = model, first_rank, num_ranks

    def sum_losses(self, batch: MicroBatch, transport: Transport, timeline: Timeline) -> Tensor:
        """Sum the cross-entropies of a micro-batch's tokens."""
        model = self.model
        x_TH = model.embedding[batch.inputs_T]
        note(timeline, "dense", -1)
        for layer in range(model.job.model.num_layers):
            key = str(layer)
            if key in model.mixers:
                seen = _Mark.apply(x_TH, timeline, "attention", layer)
                mixed = model.mixers[key](model.mixer_norms[key](seen), batch.chunk)
                x_TH = x_TH + mixed
                note(timeline, "attention", layer)
            if key not in model.ffns:
                continue
            seen = _Mark.apply(x_TH, timeline, "dense", layer)
            normed, block = model.ffn_norms[key](seen), model.ffns[key]
            if isinstance(block, ExpertLayer):
                wires = Wires(transport, timeline, layer, self._first_rank, self._num_ranks)
                x_TH = x_TH + _compute_mixture(block, normed, batch, wires)
            else:
                x_TH = x_TH + block(normed)
                note(timeline, "dense", layer)
        last = model.norm(_Mark.apply(x_TH, timeline, "dense", -1))
        head = model.embedding if model.head is None else model.head
        loss = functional.cross_entropy(
            functional.linear(last, head), batch.targets_T, reduction="sum"
        )
        note(timeline, "dense", -1)
        return loss


def _compute_mixture(
    layer: ExpertLayer, normed_TH: Tensor, batch: MicroBatch, wires: Wires
) -> Tensor:
    """Output of an MoE layer for every token, ``[T, H]``."""
    job, num_tokens = layer.job, len(normed_TH)
    planned_TJ = job.ids_TJ(layer.moe_layer, batch.offset + batch.first_token, num_tokens)
    ids_TK, weight_TK = layer.router(
        normed_TH, None if planned_TJ is None else torch.from_numpy(planned_TJ)
    )
    shared_TH = None if layer.shared is None else layer.shared(normed_TH)
    note(wires.timeline, "dense", layer.layer)
    routed_TH = compute_experts(
        layer,
        _Mark.apply(normed_TH, wires.timeline, "experts", layer.layer),
        weight_TK,
        ids_TK.numpy(),
        batch.first_token,
        wires,
    )
    note(wires.timeline, "experts", layer.layer)
    return routed_TH if shared_TH is None else routed_TH + shared_TH
