"""Bytes of a sparse matrix in each format: weights that are pruned, activations and inputs that
hold zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from simulator.config.sparse_formats import (
    FORMATS,
    INDEX_WIDTHS,
    INDEXED,
    SparseFormat,
    find_footprint,
    find_index_bits,
)


class Stored(NamedTuple):
    """A matrix in one format."""

    format: SparseFormat
    index_bits: int | None
    """Bits of a row's or a column's number; ``None`` where the format has none."""
    num_bytes: float
    """Bytes of the values that are kept and of their places."""
    share: float
    """Bytes over those of the whole matrix."""
    break_even_density: float
    """Share of the values below which the format takes fewer bytes than the whole matrix; 0 where
    it never does."""

    @property
    def name(self) -> str:
        """Format for people: ``csr, 16-bit``."""
        return self.format if self.index_bits is None else f"{self.format}, {self.index_bits}-bit"


def list_storage(rows: int, columns: int, value_bytes: float, num_kept: int) -> tuple[Stored, ...]:
    """List the formats that a matrix can be stored in, with every index width that reaches all of
    its rows and columns.

    Args:
        value_bytes: bytes of one value.
        num_kept: values that are not zero.

    >>> by_name = {one.name: one for one in list_storage(1024, 1024, 2.0, 1024 * 512)}
    >>> round(by_name["bitmask"].share, 4), round(by_name["csr, 16-bit"].share, 3)
    (0.5625, 1.002)
    """
    return tuple(_list_formats(rows, columns, value_bytes, num_kept))


def _list_formats(rows: int, columns: int, value_bytes: float, num_kept: int) -> Iterator[Stored]:
    places = rows * columns
    for name in FORMATS:
        least = find_index_bits(name, rows, columns)
        widths = [bits for bits in INDEX_WIDTHS if bits >= least] if name in INDEXED else [None]
        for bits in widths:
            footprint = find_footprint(name, rows, columns, bits or INDEX_WIDTHS[0])
            num_bytes = num_kept * value_bytes + footprint.index_bytes(num_kept)
            density = footprint.break_even_density(places, value_bytes)
            yield Stored(name, bits, num_bytes, num_bytes / (places * value_bytes), density)
