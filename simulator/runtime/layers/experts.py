"""Routed experts of a layer, side by side, each multiplying its own tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.config.ffns.moe import MoE
from simulator.config.sparsity import Pruning
from simulator.runtime.layers.pruned import PrunedMatrix, check_whole_blocks, multiply, store_part
from simulator.runtime.layers.weights import WHOLE, Part, Weights, empty, fill


class Experts(nn.Module):
    """Experts of some slots of one layer (``P`` slots, several of which may hold copies of one
    expert).
    """

    def __init__(
        self,
        moe: MoE,
        hidden_size: int,
        expert_P: list[int],
        part: Part = WHOLE,
        pruning: Pruning | None = None,
    ) -> None:
        super().__init__()
        self.moe, self.hidden_size, self.expert_P, self.part = (
            moe,
            hidden_size,
            list(expert_P),
            part,
        )
        width = part.num(moe.intermediate_size)
        rows = 2 * width if moe.is_gated else width
        if pruning is not None and part.size > 1:
            check_whole_blocks(part.bounds(moe.intermediate_size), pruning)
        self.up = _hold(pruning, len(self.expert_P), rows, hidden_size)
        self.down = _hold(pruning, len(self.expert_P), hidden_size, width)
        has_bias = moe.has_expert_bias
        self.up_bias = empty(len(self.expert_P), rows) if has_bias else None
        # The ranks of a tensor-parallel group add up their results, so only one of them adds the
        # bias.
        self.down_bias = (
            empty(len(self.expert_P), hidden_size) if has_bias and part.rank == 0 else None
        )

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights called ``name.<expert id>.up`` and so on.

        Args:
            like: a tensor of the number format and device to use.
        """
        moe, hidden = self.moe, self.hidden_size
        rows = (2 if moe.is_gated else 1) * moe.intermediate_size
        for slot, expert in enumerate(self.expert_P):
            up = weights.tensor(f"{name}.{expert}.up", (rows, hidden))
            store_part(
                _choose(self.up, slot),
                up,
                partial(self.part.cut_gated, is_gated=moe.is_gated),
                like,
            )
            down = weights.tensor(f"{name}.{expert}.down", (hidden, moe.intermediate_size))
            store_part(_choose(self.down, slot), down, partial(self.part.cut, dim=1), like)
            if self.up_bias is not None:
                bias = weights.tensor(f"{name}.{expert}.up_bias", (rows,))
                fill(self.up_bias[slot], self.part.cut_gated(bias, moe.is_gated))
            if self.down_bias is not None:
                fill(self.down_bias[slot], weights.tensor(f"{name}.{expert}.down_bias", (hidden,)))

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of the weights of one expert, or of this rank's part of it."""
        return sum(one[0].numel() * one.element_size() for one in self.parameters())

    def pack(self, expert: int) -> Tensor:
        """Weights of an expert that is held here, one after the other as bytes, ``[B]``."""
        slot = self.expert_P.index(expert)
        flat = torch.cat([weights_P[slot].detach().flatten() for weights_P in self.parameters()])
        return flat.view(torch.uint8)

    def rearrange(self, expert_P: list[int], packed: Mapping[int, Tensor]) -> None:
        """Hold other experts, in as many slots or another number of them.

        Args:
            expert_P: expert of each slot from now on.
            packed: weights of those that are not held yet, as :meth:`pack` returns them.
        """
        is_resized = len(expert_P) != len(self.expert_P)
        changed = [
            slot
            for slot, expert in enumerate(expert_P)
            if is_resized or self.expert_P[slot] != expert
        ]
        # All are copied before any is overwritten: experts may change places.
        held = set(self.expert_P)
        weights = {
            slot: self.pack(expert_P[slot]) if expert_P[slot] in held else packed[expert_P[slot]]
            for slot in changed
        }
        if is_resized:
            for name, weights_P in list(self.named_parameters()):
                resized = weights_P.new_empty((len(expert_P), *weights_P.shape[1:]))
                setattr(self, name, nn.Parameter(resized))
        for slot, flat_B in weights.items():
            first = 0
            values = flat_B.contiguous().view(next(self.parameters()).dtype)
            for weights_P in self.parameters():
                own = weights_P[slot]
                fill(own, values[first : first + own.numel()].view(own.shape))
                first += own.numel()
        self.expert_P = list(expert_P)

    def forward(self, x_NH: Tensor, rows_P: list[int]) -> Tensor:
        """Pass each slot's tokens through its expert.

        Args:
            x_NH: tokens in the order of slots.
            rows_P: number of tokens of each slot; they add up to ``N``.

        Returns:
            ``[N, H]``, a partial sum where the experts are split.
        """
        results = []
        first = 0
        up_P, down_P = _take_apart(self.up), _take_apart(self.down)
        for slot, rows in enumerate(rows_P):
            if rows == 0:
                continue
            x = x_NH[first : first + rows]
            first += rows
            up_bias = None if self.up_bias is None else self.up_bias[slot]
            down_bias = None if self.down_bias is None else self.down_bias[slot]
            up = multiply(up_P[slot], x, up_bias)
            results.append(multiply(down_P[slot], activate(up, self.moe.is_gated), down_bias))
        # Without tokens the result is the input, so that gradients find their way back.
        return torch.cat(results) if results else x_NH


def _hold(pruning: Pruning | None, *shape: int) -> Tensor | nn.ModuleList:
    """Make the matrices of all slots, ``[P, out, in]``, or a pruned one for each."""
    if pruning is None:
        return empty(*shape)
    return nn.ModuleList(PrunedMatrix(pruning) for _ in range(shape[0]))


def _choose(held_P: Tensor | nn.ModuleList, slot: int) -> Tensor | PrunedMatrix:
    """Choose the matrix of a slot."""
    return cast(Tensor | PrunedMatrix, held_P[slot])


def _take_apart(held_P: Tensor | nn.ModuleList) -> Sequence[Tensor | PrunedMatrix]:
    """Take the matrices of all slots apart at once: in a backward pass, a gradient of each
    ``held_P[slot]`` would be as large as that of all slots.
    """
    if isinstance(held_P, Tensor):
        return held_P.unbind()
    return [_choose(held_P, slot) for slot in range(len(held_P))]


def activate(up: Tensor, is_gated: bool) -> Tensor:
    """SwiGLU activation (Shazeer, arXiv:2002.05202), with the gate in the first half; GELU where
    there is no gate.
    """
    if not is_gated:
        return functional.gelu(up)
    gate, value = up.chunk(2, dim=-1)
    return functional.silu(gate) * value
