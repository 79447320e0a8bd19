"""Dense matrix products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cost.compute._tiles import tiled_s
from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.calibration import GemmFit
from simulator.spec.dtypes import BYTES_PER_ELEMENT, INPUT_BYTES

_OVERLAP = 3.0


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
    rate = accelerator.flops_per_s(dtype) * fit.compute_fraction
    bytes_per_s = accelerator.memory_bytes_per_s * fit.memory_fraction
    operand_bytes = rows * (in_features * INPUT_BYTES.get(dtype, 2.0) + out_features * 2.0)
    memory_s = copies * (in_features * out_features * BYTES_PER_ELEMENT[dtype] + operand_bytes) / bytes_per_s
    compute_s = tiled_s(rows[..., None], in_features, out_features, rate, accelerator.num_multiprocessors, fit.min_split_k, copies)
    quantise_s = copies * rows * (in_features * fit.quantise_bytes) / bytes_per_s
    busy_s = (compute_s**_OVERLAP + memory_s**_OVERLAP) ** (1 / _OVERLAP)
    return np.where(rows > 0, fit.floor_s + busy_s + quantise_s, 0.0)
