"""Feed-forward network that every token uses: a dense block or a shared expert."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from simulator.config.ffns.moe import MoE
from simulator.config.sparsity import Pruning
from simulator.runtime.layers.experts import activate
from simulator.runtime.layers.kinds import FFNLayer
from simulator.runtime.layers.pruned import PrunedMatrix, check_whole_blocks, multiply, store_part
from simulator.runtime.layers.weights import WHOLE, Part, Weights, empty, fill


class FeedForward(FFNLayer):
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
            check_whole_blocks(part.bounds(width), pruning)
        self.up: nn.Parameter | PrunedMatrix = (
            PrunedMatrix(pruning) if pruning else empty(rows, hidden_size)
        )
        self.down: nn.Parameter | PrunedMatrix = (
            PrunedMatrix(pruning) if pruning else empty(hidden_size, own)
        )
        self.up_bias = empty(rows) if has_bias else None
        self.down_bias = empty(hidden_size) if has_bias and part.rank == 0 else None

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        rows = (2 if self.is_gated else 1) * self.width
        up = weights.tensor(f"{name}.up", (rows, self.hidden_size))
        down = weights.tensor(f"{name}.down", (self.hidden_size, self.width))
        for holder, matrix, is_up in ((self.up, up, True), (self.down, down, False)):
            store_part(holder, matrix, partial(self._cut, is_up=is_up), like)
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
        """Output of the block, ``[T, H]``; a partial sum where it is split."""
        up = multiply(self.up, x_TH, self.up_bias)
        return multiply(self.down, activate(up, self.is_gated), self.down_bias)


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
