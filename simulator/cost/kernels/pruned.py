"""Products with pruned matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import GemmFit, PrunedFit
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.pruning import Pruning, stored_bytes
from simulator.cost.kernels.gemm import Operands, product_s


def pruned_s(
    accelerator: AcceleratorSpec,
    whole: GemmFit,
    fit: PrunedFit,
    rows: NDArray[np.float64],
    in_features: int,
    out_features: int,
    dtype: str,
    pruning: Pruning,
) -> NDArray[np.float64]:
    """Seconds of ``rows x in_features @ in_features x out_features`` with the remaining values of
    the second, pruned matrix; 0 for no rows.

    It is the roofline of the whole product with the stored bytes, indices included, and the rate at
    which the kernel multiplies.

    Args:
        whole: fit of products with whole matrices of the format.
    """
    size = in_features * out_features
    share = pruning.num_stored(out_features, in_features) / size if fit.skips_zeros else 1.0
    operands = Operands.from_format(accelerator, dtype)
    operands = operands._replace(
        flops_per_s=operands.flops_per_s * fit.compute_ratio / max(share, 1.0 / size),
        weight_bytes=stored_bytes(pruning, out_features, in_features, BYTES_PER_ELEMENT[dtype])
        / size,
        feeding=1.0,  # what is stored is unpacked into whole tiles
    )
    memory_fraction = min(whole.memory_fraction * fit.memory_ratio, 1.0)
    kernel = whole.model_copy(
        update={"memory_fraction": memory_fraction, "floor_s": whole.floor_s + fit.floor_s}
    )
    seconds = product_s(accelerator, kernel, rows, in_features, out_features, operands)
    if not fit.expand_bytes:
        return seconds
    expand_s = size * fit.expand_bytes / (accelerator.memory_bytes_per_s * memory_fraction)
    return np.where(
        rows > 0, (seconds**whole.overlap + expand_s**whole.overlap) ** (1 / whole.overlap), 0.0
    )
