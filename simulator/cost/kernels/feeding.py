"""How far small tiles are held up by feeding a multiprocessor, not by its multiplying."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.config.accelerator import AcceleratorSpec

_MEASURED_FLOPS_PER_S = 989e12 / 132
"""Of a multiprocessor of H100 in 16 bits: the least of the GPUs that fits are of. Times of small
tiles are theirs."""
_LEAST_ROWS = 8
"""To which few rows are padded: the narrowest side of a tensor core's product."""


def feeding_share(accelerator: AcceleratorSpec) -> float:
    """Of the time that a small tile takes beyond its multiplications, what it takes on this GPU, as
    a share of multiplying there.

    Loading operands and waiting for them takes a multiprocessor as long where its tensor cores are
    slower (H20 has a quarter of H100's), so beside slower ones it is less. At most one: faster
    tensor cores are fed faster too, as B200's fit shows.
    """
    return min(
        1.0, accelerator.bf16_flops_per_s / accelerator.num_multiprocessors / _MEASURED_FLOPS_PER_S
    )


def padded_share(rows: ArrayLike, tile_rows: int) -> NDArray[np.float64]:
    """Of a tile, what is multiplied where a product has fewer rows: rounded up to powers of two,
    eight and more.

    >>> padded_share([1, 9, 16, 64, 100], 64)
    array([0.125, 0.25 , 0.25 , 1.   , 1.   ])
    """
    padded = np.exp2(np.ceil(np.log2(np.maximum(np.asarray(rows, dtype=np.float64), _LEAST_ROWS))))
    return np.asarray(np.minimum(padded / tile_rows, 1.0), dtype=np.float64)
