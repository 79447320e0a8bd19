"""Sparse matrices: formats, pruned models, and published speeds of their products."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self, get_args

from pydantic import Field, model_validator

from simulator.base.data import find_file
from simulator.base.frozen import Frozen, ListOf, validate
from simulator.base.quantities import Experts, Extent, Factor, Tokens, Width, value_range
from simulator.base.reading import read_toml

SparseFormat = Literal["csr", "coo", "bitmask", "tiled_csl", "bitmap"]
FORMATS: tuple[SparseFormat, ...] = get_args(SparseFormat)
INDEXED: tuple[SparseFormat, ...] = ("csr", "coo")
"""Formats that number rows or columns, with ``index_bits`` each."""
INDEX_WIDTHS = (8, 16, 32, 64)
IndexBits = Annotated[int, value_range(8, 64, "bits")]
_START_BYTES = 4
"""Bytes of the start of a row, a tile or a group; PyTorch's CSR with 64-bit columns has 64-bit
starts."""
_CSL_TILE = (128, 64)
"""Places of a tile of Flash-LLM's format (arXiv:2309.10285); one of them takes 16 bits."""
_BITMAP, _BITMAP_GROUP = 8, 64
"""Sides of the tiles that one 64-bit mask is for, and of the groups that begin at an offset of
their own (SpInfer, doi:10.1145/3689031.3717481)."""


class Footprint(NamedTuple):
    """Bytes that say where values lie, linear in the number of values that are kept."""

    per_value: float
    """Bytes of each value's place."""
    fixed: float
    """Bytes of the matrix, however many values are kept."""

    def index_bytes(self, num_kept: int) -> float:
        """Bytes of all places."""
        return self.per_value * num_kept + self.fixed

    def break_even_density(self, num_places: int, value_bytes: float) -> float:
        """Share of the values below which the format takes fewer bytes than the whole matrix; 0
        where it never does.

        Args:
            num_places: rows times columns.
            value_bytes: bytes of one value.
        """
        kept = (num_places * value_bytes - self.fixed) / (value_bytes + self.per_value)
        return max(kept / num_places, 0.0)


def find_footprint(name: SparseFormat, rows: int, columns: int, index_bits: int) -> Footprint:
    """Find the bytes of places in a matrix of ``rows x columns``, without the padding that kernels
    add to tiles.

    >>> find_footprint("bitmask", 128, 256, 32).index_bytes(8192)
    4096.0
    """
    if name == "csr":
        start_bytes = 8 if index_bits == 64 else _START_BYTES
        return Footprint(index_bits / 8, float(start_bytes * (rows + 1)))
    if name == "coo":
        return Footprint(2 * index_bits / 8, 0.0)
    if name == "tiled_csl":
        tiles = -(-rows // _CSL_TILE[0]) * -(-columns // _CSL_TILE[1])
        return Footprint(2.0, float(_START_BYTES * (tiles + 1)))
    if name == "bitmap":
        masks = -(-rows // _BITMAP) * -(-columns // _BITMAP)
        groups = -(-rows // _BITMAP_GROUP) * -(-columns // _BITMAP_GROUP)
        return Footprint(0.0, float(8 * masks + _START_BYTES * (groups + 1)))
    return Footprint(0.0, float(-(-rows * columns // 8)))


def find_index_bits(name: SparseFormat, rows: int, columns: int) -> int:
    """Find the narrowest index that numbers a matrix's columns, and in COO its rows."""
    most = max(rows, columns) if name == "coo" else columns
    return next(bits for bits in INDEX_WIDTHS if most <= 1 << bits)


Sparsity = Annotated[float, value_range(0, 0.9999)]
_INDEX_BYTES = 4


class _Pruned(Frozen):
    """Base of all kinds of pruning."""

    kind: str
    """Kind of pruning."""
    blocks: Literal["dense", "experts", "all"] = "dense"
    """Feed-forward blocks that are pruned: dense ones, each routed expert (not the shared one, nor
    the router), or both."""

    @property
    def kernels(self) -> str:
        """Name of the kernels for such matrices in calibrations."""
        return self.kind


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


_FAMILY, _NAME = "cluster_configs/published", "sparsity"


class PublishedSpeed(Frozen):
    """Speed of a product, or of a whole model, over that with whole matrices."""

    title: str
    """Kernels and machine."""
    device: Literal["cpu", "gpu"] = "gpu"
    """Processor or accelerator."""
    sparsity: Sparsity
    """Share of the weights that are gone."""
    speed_up: Factor
    """Time with whole matrices over time with pruned ones; 1 at the break-even."""
    tokens: Tokens | None = None
    """Tokens of a step; absent = several, or not said."""
    out_features: Width | None = None
    """Rows of the matrix; absent = several matrices, or a whole model."""
    in_features: Width | None = None
    """Columns of the matrix."""
    machine: str | None = None
    """Accelerator of ``cluster_configs/accelerators`` that it was measured on; absent = none of
    them."""
    kernels: str | None = None
    """Kernels, as calibrations name them; absent = others."""
    rests: Literal["compared", "fitted", "shown"]
    """Whether a prediction is compared with it, a calibration was fitted on it, or neither, since
    no calibration is of that machine and those kernels."""
    conditions: str
    """Shapes, number format and batch."""
    source: str
    """Publication that it was read in."""


class PublishedLoss(Frozen):
    """Perplexity of a pruned model beside the whole one's."""

    model: str
    """Model."""
    method: str
    """Way in which weights were chosen."""
    pattern: str
    """Weights that are gone: ``50 %``, ``2:4``."""
    whole: Extent
    """Perplexity of the whole model."""
    pruned: Extent
    """Perplexity of the pruned one."""
    source: str
    """Publication that it was read in."""


class PublishedReduction(Frozen):
    """Accuracy that a model lost with some of its experts."""

    model: str
    """Model."""
    method: str
    """Way in which experts were chosen."""
    experts: Experts
    """Experts of a layer."""
    experts_left: Experts
    """Experts of a layer that are left."""
    points: Extent
    """Points of accuracy lost, mean of zero-shot tasks."""
    source: str
    """Publication that it was read in."""


class PublishedSparsity(Frozen):
    """File of what was published."""

    speeds: ListOf[PublishedSpeed]
    """Speeds."""
    losses: ListOf[PublishedLoss]
    """Perplexities on WikiText2, pruned at one go without training."""
    reductions: ListOf[PublishedReduction]
    """Accuracies with fewer experts."""


def load_published() -> PublishedSparsity:
    """Read what was published."""
    path = find_file(_FAMILY, _NAME, "sparsity")
    return validate(PublishedSparsity, read_toml(path), str(path))
