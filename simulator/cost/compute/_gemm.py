"""Dense matrix products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.calibration import GemmFit
from simulator.spec.dtypes import BYTES_PER_ELEMENT, INPUT_BYTES

_TILES = ((16, 128), (32, 128), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128))
"""Output tiles (rows, columns) that GEMM libraries choose from; the fastest one is taken, as their heuristics mean to."""
_LARGEST = 1 / 128 + 1 / 256


class Operands(NamedTuple):
    """What a format means to a product."""

    flops_per_s: float
    """Peak rate of the accelerator for it."""
    weight_bytes: float
    """Of one weight, its share of the scales included."""
    input_bytes: float
    """Of a number of the input, as the product reads it."""

    @classmethod
    def of(cls, accelerator: AcceleratorSpec, dtype: str) -> Operands:
        return cls(accelerator.flops_per_s(dtype), BYTES_PER_ELEMENT[dtype], INPUT_BYTES.get(dtype, 2.0))


def gemm_s(
    accelerator: AcceleratorSpec,
    fit: GemmFit,
    rows: NDArray[np.float64],
    in_features: int,
    out_features: int,
    dtype: str,
    copies: int = 1,
) -> NDArray[np.float64]:
    """Seconds of ``copies`` products ``rows x in_features @ in_features x out_features`` in one kernel; 0 for no rows."""
    return product_s(accelerator, fit, rows, in_features, out_features, Operands.of(accelerator, dtype), copies)


def product_s(
    accelerator: AcceleratorSpec,
    fit: GemmFit,
    rows: ArrayLike,
    in_features: ArrayLike,
    out_features: ArrayLike,
    operands: Operands,
    copies: int = 1,
) -> NDArray[np.float64]:
    """Likewise for any mixture of shapes: rows and features are broadcast against each other."""
    m, k, n = (np.asarray(size, dtype=np.float64) for size in (rows, in_features, out_features))
    bytes_per_s = accelerator.memory_bytes_per_s * fit.memory_fraction
    memory_s = copies * (k * n * operands.weight_bytes + m * (k * operands.input_bytes + n * 2.0)) / bytes_per_s
    compute_s = _tiled_s(m, k, n, operands.flops_per_s * fit.compute_fraction, accelerator.num_multiprocessors, fit, copies)
    quantise_s = copies * m * (k * (fit.quantise_bytes / bytes_per_s) + fit.quantise_row_s)
    longer_s, shorter_s = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    busy_s = longer_s * (1 + (shorter_s / longer_s) ** fit.overlap) ** (1 / fit.overlap)
    return np.where(m > 0, fit.floor_s + busy_s + quantise_s, 0.0)


def _tiled_s(
    m: NDArray[np.float64],
    k: NDArray[np.float64],
    n: NDArray[np.float64],
    flops_per_s: float,
    num_multiprocessors: int,
    fit: GemmFit,
    copies: int,
) -> NDArray[np.float64]:
    """Seconds to compute whole tiles, each on one multiprocessor; fewer tiles than multiprocessors are split along ``k``.

    A kernel starts a tile wherever one ends (persistent kernels, stream-K), so waves need not be whole.
    """
    rate = flops_per_s / num_multiprocessors
    least_depth = k if fit.min_split_k is None else np.minimum(k, fit.min_split_k)
    seconds = np.full(np.broadcast(m, k, n).shape, np.inf)
    for tile_rows, tile_columns in _TILES:
        tiles = np.ceil(m / tile_rows) * (np.ceil(n / tile_columns) * copies)
        depth = np.maximum(tiles * (k / num_multiprocessors), least_depth)
        slowdown = (1 + fit.reread * (1 / tile_rows + 1 / tile_columns)) / (1 + fit.reread * _LARGEST)
        seconds = np.minimum(seconds, depth * (2.0 * tile_rows * tile_columns * slowdown / rate))
    return seconds
