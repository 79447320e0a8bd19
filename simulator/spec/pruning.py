"""Pruned matrices: which weights of a dense feed-forward block are left, and what it takes to store them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.spec.base import Frozen, Size

Sparsity = Annotated[float, Field(ge=0, lt=1)]
_INDEX_BYTES = 4


class Unstructured(Frozen):
    """The smallest weights are gone wherever they lie; the rest is stored row by row (CSR)."""

    kind: Literal["unstructured"]
    sparsity: Sparsity
    """Share of the weights that are gone."""

    def num_stored(self, out_features: int, in_features: int) -> int:
        """Weights that are left of a matrix."""
        return out_features * in_features - round(self.sparsity * out_features * in_features)

    def index_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes that say where they lie: a column for each weight, a start for each row."""
        return float(_INDEX_BYTES * (self.num_stored(out_features, in_features) + out_features + 1))


class TwoFour(Frozen):
    """Of each four neighbours in a row the two largest are left: the format of NVIDIA's sparse tensor cores."""

    kind: Literal["two_four"]

    @property
    def sparsity(self) -> float:
        """Share of the weights that are gone."""
        return 0.5

    def num_stored(self, out_features: int, in_features: int) -> int:
        """Weights that are left of a matrix."""
        return out_features * in_features // 2

    def index_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes that say where they lie: two bits for each weight that is left."""
        return self.num_stored(out_features, in_features) * 2 / 8


class Block(Frozen):
    """Whole square blocks are gone, those with the smallest norms (BSR)."""

    kind: Literal["block"]
    sparsity: Sparsity
    """Share of the blocks that are gone."""
    block_size: Size = 16

    def num_stored(self, out_features: int, in_features: int) -> int:
        """Weights that are left of a matrix."""
        return self.num_blocks(out_features, in_features) * self.block_size**2

    def num_blocks(self, out_features: int, in_features: int) -> int:
        """Blocks that are left of a matrix."""
        blocks = (out_features // self.block_size) * (in_features // self.block_size)
        return blocks - round(self.sparsity * blocks)

    def index_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes that say where they lie: a column for each block, a start for each row of blocks."""
        return float(_INDEX_BYTES * (self.num_blocks(out_features, in_features) + out_features // self.block_size + 1))


Pruning = Annotated[Unstructured | TwoFour | Block, Field(discriminator="kind")]
