"""Feed-forward network that every token uses: a dense block or a shared expert."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from simulator.base.errors import UserError
from simulator.config.pruning import Block, Pruning, TwoFour
from simulator.runtime.layers.experts import activate
from simulator.runtime.layers.kinds import FFNLayer
from simulator.runtime.layers.part import WHOLE, Part
from simulator.runtime.layers.pruned import PrunedMatrix, choose_kept
from simulator.runtime.layers.weights import Weights, empty, fill


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
        rows = (2 if self.is_gated else 1) * self.width
        up = weights.tensor(f"{name}.up", (rows, self.hidden_size))
        down = weights.tensor(f"{name}.down", (self.hidden_size, self.width))
        for holder, matrix, is_up in ((self.up, up, True), (self.down, down, False)):
            own = self._cut(matrix, is_up)
            if isinstance(holder, PrunedMatrix):
                if holder.pruning is not None:
                    # The whole matrix decides what is left, so that pruning does not depend on how
                    # the matrix is split.
                    holder.store(own, self._cut(choose_kept(matrix, holder.pruning), is_up), like)
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
        """Output of the block, ``[T, H]``; a partial sum where it is split."""
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
    """Refuse parts of a pruned block that do not begin and end between blocks, since they would
    store more than their share.
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
