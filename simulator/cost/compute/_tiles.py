"""Whole output tiles of matrix products, spread over multiprocessors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TILES = ((16, 128), (32, 128), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128))
"""Output tiles (rows, columns) that GEMM libraries choose from; the fastest one is taken, as their heuristics mean to."""
_REREAD = 40.0
"""A tile of ``a x b`` reads ``1/a + 1/b`` numbers for each multiply-add, which slows it by ``1 + 40 (1/a + 1/b)``. Fitted: 21 to
50 on bf16 GEMMs on H100 and B200, 11 to 51 on grouped GEMMs on H100, with little to choose between."""
_LARGEST_TILE_READS = 1 + _REREAD * (1 / 128 + 1 / 256)


def tiled_s(
    rows_G: NDArray[np.float64],
    in_features: int,
    out_features: int,
    flops_per_s: float,
    num_multiprocessors: int,
    min_split_k: int,
    copies: int = 1,
) -> NDArray[np.float64]:
    """Seconds to compute whole tiles of each group's rows (last axis), each tile on one multiprocessor.

    A kernel starts a tile wherever one ends (persistent kernels, stream-K), so waves need not be whole: charging whole waves
    raised the 90th percentile of the error of bf16 GEMMs on B200 from 0.16 to 0.27. Fewer tiles than multiprocessors are split
    along ``in_features``, down to ``min_split_k``.
    """
    rate = flops_per_s / num_multiprocessors
    seconds = np.full(rows_G.shape[:-1], np.inf)
    for tile_rows, tile_columns in _TILES:
        tiles = np.ceil(rows_G / tile_rows).sum(axis=-1) * (np.ceil(out_features / tile_columns) * copies)
        depth = np.maximum(tiles / num_multiprocessors * in_features, min(in_features, min_split_k))
        slowdown = (1 + _REREAD * (1 / tile_rows + 1 / tile_columns)) / _LARGEST_TILE_READS
        seconds = np.minimum(seconds, depth * (2.0 * tile_rows * tile_columns * slowdown / rate))
    return seconds
