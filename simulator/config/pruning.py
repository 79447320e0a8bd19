"""Pruned matrices: which weights of a dense feed-forward block are left, and what it takes to store
them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.base.frozen import Frozen
from simulator.base.quantities import Width, value_range

Sparsity = Annotated[float, value_range(0, 0.9999)]
_INDEX_BYTES = 4
_CSL_TILE = (128, 64)
"""Weights of a tile of Flash-LLM's format; a place in it takes 16 bits."""
_BITMAP, _BITMAP_GROUP = 8, 64
"""Sides of the tiles that one 64-bit mask is for, and of the groups that begin at an offset of
their own (SpInfer)."""


class Unstructured(Frozen):
    """The smallest weights are gone wherever they lie."""

    kind: Literal["unstructured"]
    """Pruning of single weights wherever they lie."""
    sparsity: Sparsity
    """Share of the weights that are gone."""
    format: Literal["csr", "tiled_csl", "bitmap"] = "csr"
    """Way in which the rest is stored: row by row with 32-bit columns (cuSPARSE, PyTorch), by tiles
    with 16-bit places in them (Flash-LLM, arXiv:2309.10285), or with a bit for every weight
    (SpInfer, doi:10.1145/3689031.3717481)."""

    @property
    def kernels(self) -> str:
        """Name of the kernels for such matrices in calibrations."""
        return self.format

    def num_stored(self, out_features: int, in_features: int) -> int:
        """Weights that are left of a matrix."""
        return out_features * in_features - round(self.sparsity * out_features * in_features)

    def index_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes that say where they lie.

        A column for each weight and a start for each row; or a place for each weight and a start
        for each tile; or a mask for each 8x8 weights and a start for each group. Without the
        padding that kernels add to tiles.
        """
        if self.format == "tiled_csl":
            rows, columns = _CSL_TILE
            tiles = -(-out_features // rows) * -(-in_features // columns)
            return float(
                2 * self.num_stored(out_features, in_features) + _INDEX_BYTES * (tiles + 1)
            )
        if self.format == "bitmap":
            masks = -(-out_features // _BITMAP) * -(-in_features // _BITMAP)
            groups = -(-out_features // _BITMAP_GROUP) * -(-in_features // _BITMAP_GROUP)
            return float(_BITMAP * masks + _INDEX_BYTES * (groups + 1))
        return float(_INDEX_BYTES * (self.num_stored(out_features, in_features) + out_features + 1))


class TwoFour(Frozen):
    """The two largest of each four neighbours in a row are left: the format of NVIDIA's sparse
    tensor cores.
    """

    kind: Literal["two_four"]
    """Pruning of two of each four neighbours."""

    @property
    def kernels(self) -> str:
        """Name of the kernels for such matrices in calibrations."""
        return self.kind

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
    """Pruning of whole blocks."""
    sparsity: Sparsity
    """Share of the blocks that are gone."""
    block_size: Width = 16
    """Numbers of one side of a block."""

    @property
    def kernels(self) -> str:
        """Name of the kernels for such matrices in calibrations."""
        return self.kind

    def num_stored(self, out_features: int, in_features: int) -> int:
        """Weights that are left of a matrix."""
        return self.num_blocks(out_features, in_features) * self.block_size**2

    def num_blocks(self, out_features: int, in_features: int) -> int:
        """Blocks that are left of a matrix."""
        blocks = (out_features // self.block_size) * (in_features // self.block_size)
        return blocks - round(self.sparsity * blocks)

    def index_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes that say where they lie: a column for each block, a start for each row of
        blocks.
        """
        return float(
            _INDEX_BYTES
            * (self.num_blocks(out_features, in_features) + out_features // self.block_size + 1)
        )


Pruning = Annotated[Unstructured | TwoFour | Block, Field(discriminator="kind")]


def stored_bytes(
    pruning: Pruning, out_features: int, in_features: int, weight_bytes: float
) -> float:
    """Bytes of a pruned matrix: the weights that are left, ``weight_bytes`` each, and their
    places.
    """
    return pruning.num_stored(out_features, in_features) * weight_bytes + pruning.index_bytes(
        out_features, in_features
    )


def pruning_text(pruning: Pruning) -> str:
    """Pruning in words for names of models: ``2:4``, ``70 % sparse, bitmap``."""
    if isinstance(pruning, TwoFour):
        return "2:4"
    stored_as = (
        pruning.format
        if isinstance(pruning, Unstructured)
        else f"{pruning.block_size}x{pruning.block_size} blocks"
    )
    return f"{100 * pruning.sparsity:g} % sparse, {stored_as}"
