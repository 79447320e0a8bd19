"""Shared experts of a mixture of experts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from simulator.config.ffns.moe import MoE
from simulator.runtime.layers.feed_forward import FeedForward
from simulator.runtime.layers.part import WHOLE, Part
from simulator.runtime.layers.weights import Weights, empty, fill


class SharedExpert(nn.Module):
    """Shared experts of a layer, as one block as wide as all of them, with a learned scalar gate
    where the model has one.
    """

    def __init__(self, moe: MoE, hidden_size: int, part: Part = WHOLE) -> None:
        super().__init__()
        self.block = FeedForward(
            hidden_size,
            moe.shared_intermediate_size,
            is_gated=moe.is_gated,
            has_bias=False,
            part=part,
        )
        self.gate = empty(1, hidden_size) if moe.has_shared_gate else None

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights called ``name.up``, ``name.down`` and ``name.gate``."""
        self.block.load(weights, name, like)
        if self.gate is not None:
            fill(self.gate, weights.tensor(f"{name}.gate", tuple(self.gate.shape)))

    def forward(self, x_TH: Tensor) -> Tensor:
        """Output of the block, ``[T, H]``; a partial sum where it is split."""
        result: Tensor = self.block(x_TH)
        return (
            result if self.gate is None else result * functional.linear(x_TH, self.gate).sigmoid()
        )
