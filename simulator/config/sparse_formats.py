"""Formats of sparse matrices: the bytes that say where the values lie that are kept.

| format | says where a value lies by |
|---|---|
| ``csr`` | its column's number, and a start for each row (cuSPARSE, PyTorch, SciPy) |
| ``coo`` | the numbers of its row and of its column |
| ``bitmask`` | one bit for each place of the matrix |
| ``tiled_csl`` | its place in a tile in 16 bits, and a start for each tile (Flash-LLM) |
| ``bitmap`` | a 64-bit mask for each 8 x 8 places, and a start for each 64 x 64 (SpInfer) |
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, get_args

from simulator.base.quantities import value_range

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
