"""Feed-forward blocks that every token uses: dense ones, shared experts, and the whole mixture of
experts of one process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.base.errors import UserError
from simulator.config.ffn import DenseFFN, MoE
from simulator.config.pruning import Block, Pruning, TwoFour
from simulator.runtime.layers.experts import Experts, activate
from simulator.runtime.layers.part import WHOLE, Part
from simulator.runtime.layers.pruned import PrunedMatrix, kept
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.weights import Weights, empty, fill


class FeedForward(nn.Module):
    """Two or three matrices with an activation between them."""

    def __init__(
        self,
        hidden_size: int,
        width: int,
        *,
        is_gated: bool,
        has_bias: bool,
        part: Part = WHOLE,
        pruning: Pruning | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.width, self.is_gated, self.part, self.pruning = (
            hidden_size,
            width,
            is_gated,
            part,
            pruning,
        )
        own = part.num(width)
        rows = 2 * own if is_gated else own
        if pruning is not None and part.size > 1:
            _check_whole_blocks(part.bounds(width), pruning)
        self.up: nn.Parameter | PrunedMatrix = (
            PrunedMatrix(pruning) if pruning else empty(rows, hidden_size)
        )
        self.down: nn.Parameter | PrunedMatrix = (
            PrunedMatrix(pruning) if pruning else empty(hidden_size, own)
        )
        self.up_bias = empty(rows) if has_bias else None
        self.down_bias = empty(hidden_size) if has_bias and part.rank == 0 else None

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights called ``name.up`` and so on.

        Args:
            like: a tensor of the number format and device to use (a pruned matrix has no parameter
                that says so).
        """
        rows = (2 if self.is_gated else 1) * self.width
        up = weights.tensor(f"{name}.up", (rows, self.hidden_size))
        down = weights.tensor(f"{name}.down", (self.hidden_size, self.width))
        for holder, matrix, is_up in ((self.up, up, True), (self.down, down, False)):
            own = self._cut(matrix, is_up)
            if isinstance(holder, PrunedMatrix):
                if holder.pruning is not None:
                    # The whole matrix decides what is left, so that pruning does not depend on how
                    # the matrix is split.
                    holder.store(own, self._cut(kept(matrix, holder.pruning), is_up), like)
            else:
                fill(holder, own)
        if self.up_bias is not None:
            fill(
                self.up_bias,
                self.part.cut_gated(weights.tensor(f"{name}.up_bias", (rows,)), self.is_gated),
            )
        if self.down_bias is not None:
            fill(self.down_bias, weights.tensor(f"{name}.down_bias", (self.hidden_size,)))

    def _cut(self, matrix: Tensor, is_up: bool) -> Tensor:
        return self.part.cut_gated(matrix, self.is_gated) if is_up else self.part.cut(matrix, 1)

    def forward(self, x_TH: Tensor) -> Tensor:
        """``[T, H]``, a partial sum where the block is split."""
        return self._multiply(
            self.down,
            activate(self._multiply(self.up, x_TH, self.up_bias), self.is_gated),
            self.down_bias,
        )

    @staticmethod
    def _multiply(holder: nn.Parameter | PrunedMatrix, x: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(holder, PrunedMatrix):
            result: Tensor = holder(x)
            return result if bias is None else result + bias
        return functional.linear(x, holder, bias)


def _check_whole_blocks(bounds: tuple[int, int], pruning: Pruning) -> None:
    """A rank's part of a pruned block begins and ends between blocks, or it would store more than
    its share.
    """
    size = (
        pruning.block_size
        if isinstance(pruning, Block)
        else 4
        if isinstance(pruning, TwoFour)
        else 1
    )
    if any(bound % size for bound in bounds):
        first, end = bounds
        raise UserError(
            f"pruning '{pruning.kind}' cannot be split at features {first} and {end}: "
            f"not multiples of {size}"
        )


def dense_ffn(
    ffn: DenseFFN, hidden_size: int, part: Part = WHOLE, pruning: Pruning | None = None
) -> FeedForward:
    """The block of a dense layer."""
    return FeedForward(
        hidden_size,
        ffn.intermediate_size,
        is_gated=ffn.is_gated,
        has_bias=ffn.has_bias,
        part=part,
        pruning=pruning,
    )


class SharedExpert(nn.Module):
    """The shared experts of a layer, as one block as wide as all of them, with a learned scalar
    gate where the model has one.
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
        """``[T, H]``, a partial sum where the block is split."""
        result: Tensor = self.block(x_TH)
        return (
            result if self.gate is None else result * functional.linear(x_TH, self.gate).sigmoid()
        )


class MixtureOfExperts(nn.Module):
    """A whole layer's experts in one process: what the distributed runs are compared with, and what
    is trained.
    """

    def __init__(self, moe: MoE, hidden_size: int) -> None:
        super().__init__()
        self.moe = moe
        self.router = Router(moe, hidden_size)
        self.experts = Experts(moe, hidden_size, list(range(moe.num_experts)))
        self.shared = SharedExpert(moe, hidden_size) if moe.num_shared_experts else None

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights of router, experts and shared expert."""
        self.router.load(weights, f"{name}.router")
        self.experts.load(weights, f"{name}.experts")
        if self.shared is not None:
            self.shared.load(weights, f"{name}.shared", like)

    def forward(self, x_TH: Tensor, topk_ids_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every token through its experts.

        Returns:
            ``[T, H]``, and the ids that were used, ``[T, K]``.
        """
        topk_ids_TK, weight_TK = self.router(x_TH, topk_ids_TK)
        order = topk_ids_TK.flatten().argsort(stable=True)
        token = order // self.moe.top_k
        rows_E = topk_ids_TK.flatten().bincount(minlength=self.moe.num_experts).tolist()
        expert_NH = self.experts(x_TH[token], rows_E) * weight_TK.flatten()[order, None]
        result = torch.zeros_like(x_TH).index_add(0, token, expert_NH)
        return (result if self.shared is None else result + self.shared(x_TH)), topk_ids_TK
