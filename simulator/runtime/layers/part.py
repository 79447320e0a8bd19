"""Part of a block on one tensor-parallel rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Part ``rank`` of ``size``; the whole block by default. Features that do not divide evenly go
    to the first parts.
    """

    rank: int = 0
    size: int = 1

    def bounds(self, num_features: int) -> tuple[int, int]:
        """First feature of this part, and the first one behind it.

        >>> [Part(rank, 3).bounds(8) for rank in range(3)]
        [(0, 3), (3, 6), (6, 8)]
        """
        share, extra = divmod(num_features, self.size)
        first = self.rank * share + min(self.rank, extra)
        return first, first + share + (self.rank < extra)

    def num(self, num_features: int) -> int:
        """Number of features of this part."""
        first, end = self.bounds(num_features)
        return end - first

    def cut(self, matrix: Tensor, dim: int = 0) -> Tensor:
        """Cut the part's share of a matrix along ``dim``."""
        first, end = self.bounds(matrix.shape[dim])
        return matrix.narrow(dim, first, end - first)

    def cut_gated(self, matrix: Tensor, is_gated: bool) -> Tensor:
        """Cut the part's share of the rows of a gate stacked on an up projection, ``[2F, H]``: the
        same features of both.
        """
        if not is_gated:
            return self.cut(matrix)
        gate, up = matrix.chunk(2)
        return torch.cat([self.cut(gate), self.cut(up)])


WHOLE = Part()
"""Part that is the whole block."""
