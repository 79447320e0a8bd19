"""Dense matrix products, and small tiles, whose time is loading operands."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from simulator.base.arrays import Floats
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import GemmFit
from simulator.config.dtypes import BYTES_PER_ELEMENT, INPUT_BYTES

_MEASURED_FLOPS_PER_S = 989e12 / 132
"""FLOPs per second of a multiprocessor of H100 in 16 bits, the least of the GPUs whose small tiles
were measured."""
_LEAST_ROWS = 8
"""Rows that fewer are padded to: the narrowest side of a tensor core's product."""


def feeding_share(accelerator: AcceleratorSpec) -> float:
    """Share of a small tile's extra time (beyond its multiplications) that remains on this GPU.

    Loading operands and waiting for them takes a multiprocessor as long where its tensor cores are
    slower (H20 has a quarter of H100's), so relative to multiplying it is less. At most 1: faster
    tensor cores are fed faster too, as B200's fit shows.
    """
    return min(
        1.0, accelerator.bf16_flops_per_s / accelerator.num_multiprocessors / _MEASURED_FLOPS_PER_S
    )


def padded_share(rows: ArrayLike, tile_rows: int) -> Floats:
    """Share of a tile that is multiplied where a product has fewer rows: rounded up to powers of
    two, eight or more.

    >>> padded_share([1, 9, 16, 64, 100], 64)
    array([0.125, 0.25 , 0.25 , 1.   , 1.   ])
    """
    padded = np.exp2(np.ceil(np.log2(np.maximum(np.asarray(rows, dtype=np.float64), _LEAST_ROWS))))
    return np.asarray(np.minimum(padded / tile_rows, 1.0), dtype=np.float64)


_TILES = ((16, 128), (32, 128), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128))
"""Output tiles (rows, columns) that GEMM libraries choose from; the fastest one is taken, as their
heuristics intend."""
_LARGEST = 1 / 128 + 1 / 256
"""Reciprocal sizes of the largest tile's sides, added up."""
_TILE_NUMBERS = 128 * 128
"""Elements of the result that a multiprocessor computes at a time in a large product."""
_QUANTISED = 2048.0
"""Elements of a row that a block of vLLM's quantising kernel converts at a time: its times jump
there, on H100 and B200."""


class Operands(NamedTuple):
    """Properties of a number format in a product."""

    flops_per_s: float
    """Peak FLOPs per second of the accelerator in the format."""
    weight_bytes: float
    """Bytes of one weight, including its share of the scales."""
    input_bytes: float
    """Bytes of an element of the input, as the product reads it."""
    feeding: float
    """Least share of a whole tile's time that few rows take, see :func:`feeding_share`; 1 where
    tiles are never cut."""

    @classmethod
    def from_format(
        cls, accelerator: AcceleratorSpec, dtype: str, computes_in: str | None = None
    ) -> Operands:
        """Look up a format; ``computes_in`` is the one that kernels convert it to, if they do."""
        rate, num_bytes = accelerator.flops_per_s(computes_in or dtype), BYTES_PER_ELEMENT[dtype]
        return cls(rate, num_bytes, INPUT_BYTES.get(dtype, 2.0), feeding_share(accelerator))


def gemm_s(
    accelerator: AcceleratorSpec,
    fit: GemmFit,
    rows: Floats,
    in_features: int,
    out_features: int,
    dtype: str,
    copies: int = 1,
) -> Floats:
    """Seconds of ``copies`` products ``rows x in_features @ in_features x out_features`` in one
    kernel; 0 for no rows.
    """
    return product_s(
        accelerator,
        fit,
        rows,
        in_features,
        out_features,
        Operands.from_format(accelerator, dtype),
        copies,
    )


def product_s(
    accelerator: AcceleratorSpec,
    fit: GemmFit,
    rows: ArrayLike,
    in_features: ArrayLike,
    out_features: ArrayLike,
    operands: Operands,
    copies: int = 1,
) -> Floats:
    """Seconds of products of any mixture of shapes: rows and features are broadcast against each
    other.
    """
    m, k, n = (np.asarray(size, dtype=np.float64) for size in (rows, in_features, out_features))
    bytes_per_s = accelerator.memory_bytes_per_s * fit.memory_fraction
    num_bytes = k * n * operands.weight_bytes + m * (k * operands.input_bytes + n * 2.0)
    memory_s = (
        copies
        * (num_bytes + _reread_bytes(m, k, n, operands, accelerator.num_multiprocessors, fit))
        / bytes_per_s
    )
    compute_s = _tiled_s(m, k, n, operands, accelerator, fit, copies)
    longer_s, shorter_s = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    busy_s = longer_s * (1 + (shorter_s / longer_s) ** fit.overlap) ** (1 / fit.overlap)
    row_s = k * (fit.quantise_bytes / bytes_per_s) + (
        (fit.quantise_row_s + fit.quantise_block_s * np.ceil(k / _QUANTISED))
        / accelerator.num_multiprocessors
    )
    return np.where(m > 0, fit.floor_s + busy_s + copies * m * row_s, 0.0)


def _reread_bytes(
    m: Floats, k: Floats, n: Floats, operands: Operands, num_multiprocessors: int, fit: GemmFit
) -> Floats:
    """Bytes that are read again because the operand along the shorter side of the result does not
    stay in the cache.

    Tiles in flight cover a strip across the shorter side; a long strip is as wide as one tile (or
    what a swizzle makes of it), a short one wider. Between one and two times the cache, part of the
    operand is still there.
    """
    if fit.cache_bytes is None or fit.sweep_width is None:
        return np.zeros(())
    short, long = np.minimum(m, n), np.maximum(m, n)
    operand_bytes = short * k * max(operands.input_bytes, operands.weight_bytes)
    width = np.maximum(fit.sweep_width, num_multiprocessors * _TILE_NUMBERS / np.maximum(short, 1))
    return (
        operand_bytes
        * np.maximum(long / width - 1, 0)
        * np.clip(operand_bytes / fit.cache_bytes - 1, 0, 1)
    )


def _tiled_s(
    m: Floats,
    k: Floats,
    n: Floats,
    operands: Operands,
    accelerator: AcceleratorSpec,
    fit: GemmFit,
    copies: int,
) -> Floats:
    """Seconds to compute whole tiles, each on one multiprocessor; fewer tiles than multiprocessors
    are split along ``k``.

    A kernel starts a tile wherever one ends (persistent kernels, stream-K), so waves need not be
    whole. Where the number of rows fixes the tile, one row more never takes less time: a kernel is
    charged at least what the one before took for its most rows. Fewer rows than a tile has take as
    long as a whole one on the GPUs that were measured; where tensor cores are slower, less.
    """
    num_multiprocessors, feeding = accelerator.num_multiprocessors, operands.feeding
    rate = operands.flops_per_s * fit.compute_fraction / num_multiprocessors
    least_depth = k if fit.min_split_k is None else np.minimum(k, fit.min_split_k)

    def seconds(rows: Floats, tile_rows: int, tile_columns: int) -> Floats:
        tiles = np.ceil(rows / tile_rows) * (np.ceil(n / tile_columns) * copies)
        depth = np.maximum(tiles * (k / num_multiprocessors), least_depth)
        slowdown = (1 + fit.reread * (1 / tile_rows + 1 / tile_columns)) / (
            1 + fit.reread * _LARGEST
        )
        start_s = np.maximum(tiles / num_multiprocessors, 1) * (fit.start_s / _TILE_NUMBERS)
        whole = (
            slowdown
            if feeding == 1.0
            else slowdown * np.maximum(padded_share(rows, tile_rows), feeding)
        )
        return np.asarray(
            (depth * (2.0 * whole / rate) + start_s) * (tile_rows * tile_columns), dtype=np.float64
        )

    if not fit.tiles:
        return np.asarray(np.min([seconds(m, *tile) for tile in _TILES], axis=0), dtype=np.float64)
    longest = np.zeros(np.broadcast(m, k, n).shape)
    limits = [first - 1.0 for first, _, _ in fit.tiles[1:]] + [np.inf]
    for (first, tile_rows, tile_columns), most in zip(fit.tiles, limits, strict=True):
        longest = np.where(
            m >= first,
            np.maximum(longest, seconds(np.minimum(m, most), tile_rows, tile_columns)),
            longest,
        )
    return longest
