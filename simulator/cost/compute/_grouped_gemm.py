"""The routed experts of a rank: one kernel that multiplies each expert's rows by its own matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cost.compute._tiles import tiled_s
from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.calibration import GroupedGemmFit
from simulator.spec.dtypes import BYTES_PER_ELEMENT, INPUT_BYTES

_OVERLAP = 3.0


def grouped_gemm_s(
    accelerator: AcceleratorSpec, fit: GroupedGemmFit, rows_RG: NDArray[np.float64], in_features: int, out_features: int, dtype: str
) -> NDArray[np.float64]:
    """Seconds ``[R]`` of one kernel a rank in which group ``g`` (an expert) has ``rows_RG[r, g]`` tokens."""
    rate = accelerator.flops_per_s(dtype) * fit.compute_fraction
    bytes_per_s = accelerator.memory_bytes_per_s * fit.memory_fraction
    rows = rows_RG.sum(axis=-1)
    weight_bytes = (rows_RG > 0).sum(axis=-1) * (in_features * out_features * BYTES_PER_ELEMENT[dtype])
    operand_bytes = rows * (in_features * INPUT_BYTES.get(dtype, 2.0) + out_features * 2.0)
    memory_s = (weight_bytes + operand_bytes) / bytes_per_s
    compute_s = tiled_s(rows_RG, in_features, out_features, rate, accelerator.num_multiprocessors, fit.min_split_k)
    quantise_s = rows * (in_features * fit.quantise_bytes) / bytes_per_s
    busy_s = (compute_s**_OVERLAP + memory_s**_OVERLAP) ** (1 / _OVERLAP)
    return np.where(rows > 0, fit.floor_s + busy_s + quantise_s, 0.0)
