"""Pruned matrices: weights of feed-forward blocks that are left, and bytes that store them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Width, value_range
from simulator.config.sparse_formats import (
    INDEX_WIDTHS,
    INDEXED,
    IndexBits,
    SparseFormat,
    find_footprint,
    find_index_bits,
)

Sparsity = Annotated[float, value_range(0, 0.9999)]
_INDEX_BYTES = 4


class _Pruned(Frozen):
    """Base of all kinds of pruning."""

    blocks: Literal["dense", "experts", "all"] = "dense"
    """Feed-forward blocks that are pruned: dense ones, each routed expert (not the shared one, nor
    the router), or both."""


class Unstructured(_Pruned):
    """The smallest weights are gone wherever they lie."""

    kind: Literal["unstructured"]
    """Pruning of single weights wherever they lie."""
    sparsity: Sparsity
    """Share of the weights that are gone."""
    format: SparseFormat = "csr"
    """Way in which the rest is stored: row by row with columns (cuSPARSE, PyTorch), with the row
    and the column of each (``coo``), with a bit for every weight (``bitmask``), by tiles with
    16-bit places in them (Flash-LLM, arXiv:2309.10285), or by tiles with a bit for every weight
    (SpInfer, doi:10.1145/3689031.3717481)."""
    index_bits: IndexBits = 32
    """Bits of a column's number in CSR, and of a row's and a column's in COO: 8, 16, 32 or 64."""

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        if self.index_bits not in INDEX_WIDTHS:
            raise ValueError(f"index_bits ({self.index_bits}) must be 8, 16, 32 or 64")
        if self.index_bits != 32 and self.format not in INDEXED:
            raise ValueError(f"index_bits is for csr and coo; {self.format} has none, leave it out")
        return self

    @property
    def kernels(self) -> str:
        """Name of the kernels for such matrices in calibrations."""
        return self.format

    def num_stored(self, out_features: int, in_features: int) -> int:
        """Weights that are left of a matrix."""
        return out_features * in_features - round(self.sparsity * out_features * in_features)

    def index_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes that say where they lie, without the padding that kernels add to tiles."""
        footprint = find_footprint(self.format, out_features, in_features, self.index_bits)
        return footprint.index_bytes(self.num_stored(out_features, in_features))

    def least_index_bits(self, out_features: int, in_features: int) -> int:
        """Narrowest index that reaches every weight of a matrix; 8 where the format has none."""
        if self.format not in INDEXED:
            return INDEX_WIDTHS[0]
        return find_index_bits(self.format, out_features, in_features)


class TwoFour(_Pruned):
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


class Block(_Pruned):
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


def choose_dense(pruning: Pruning | None) -> Pruning | None:
    """Pruning of dense feed-forward blocks; ``None`` where they stay whole."""
    return pruning if pruning is not None and pruning.blocks != "experts" else None


def choose_experts(pruning: Pruning | None) -> Pruning | None:
    """Pruning of routed experts; ``None`` where they stay whole."""
    return pruning if pruning is not None and pruning.blocks != "dense" else None


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
    """Pruning in words for names of models: ``2:4``, ``70 % sparse, bitmap``, ``2:4 experts``."""
    where = {"dense": "", "experts": " experts", "all": " blocks and experts"}[pruning.blocks]
    if isinstance(pruning, TwoFour):
        return f"2:4{where}"
    stored_as = (
        pruning.format
        if isinstance(pruning, Unstructured)
        else f"{pruning.block_size}x{pruning.block_size} blocks"
    )
    if isinstance(pruning, Unstructured) and pruning.index_bits != 32:
        stored_as += f" with {pruning.index_bits}-bit indices"
    return f"{100 * pruning.sparsity:g} % sparse{where}, {stored_as}"
