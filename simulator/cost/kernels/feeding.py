"""Time of small tiles that is loading operands into a multiprocessor instead of multiplying."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.config.accelerator import AcceleratorSpec

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


def padded_share(rows: ArrayLike, tile_rows: int) -> NDArray[np.float64]:
    """Share of a tile that is multiplied where a product has fewer rows: rounded up to powers of
    two, eight or more.

    >>> padded_share([1, 9, 16, 64, 100], 64)
    array([0.125, 0.25 , 0.25 , 1.   , 1.   ])
    """
    padded = np.exp2(np.ceil(np.log2(np.maximum(np.asarray(rows, dtype=np.float64), _LEAST_ROWS))))
    return np.asarray(np.minimum(padded / tile_rows, 1.0), dtype=np.float64)
