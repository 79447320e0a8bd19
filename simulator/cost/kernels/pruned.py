"""Products with pruned matrices."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from simulator.base.arrays import Floats
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import GemmFit, GroupedGemmFit, PrunedFit
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.sparsity import Pruning, stored_bytes
from simulator.cost.kernels.gemm import Operands, product_s
from simulator.cost.kernels.grouped_gemm import Load
from simulator.cost.kernels.grouped_gemm import product_s as grouped_product_s

AnyFit = TypeVar("AnyFit", GemmFit, GroupedGemmFit)


def pruned_s(
    accelerator: AcceleratorSpec,
    whole: GemmFit,
    fit: PrunedFit,
    rows: Floats,
    in_features: int,
    out_features: int,
    dtype: str,
    pruning: Pruning,
) -> Floats:
    """Seconds of ``rows x in_features @ in_features x out_features`` with the remaining values of
    the second, pruned matrix; 0 for no rows.

    It is the roofline of the whole product with the stored bytes, indices included, and the rate at
    which the kernel multiplies.

    Args:
        whole: fit of products with whole matrices of the format.
    """
    operands = _pruned_operands(
        Operands.from_format(accelerator, dtype), fit, in_features, out_features, dtype, pruning
    )
    kernel = _pruned_kernel(whole, fit)
    seconds = product_s(accelerator, kernel, rows, in_features, out_features, operands)
    return _add_expansion(
        seconds, accelerator, kernel, fit, np.minimum(rows, 1.0), in_features * out_features
    )


def pruned_grouped_s(
    accelerator: AcceleratorSpec,
    whole: GroupedGemmFit,
    fit: PrunedFit,
    rows_RG: Floats,
    in_features: int,
    out_features: int,
    dtype: str,
    pruning: Pruning,
    choices_R: Floats | None = None,
) -> Floats:
    """Seconds ``[R]`` of :func:`~simulator.cost.kernels.grouped_gemm.grouped_gemm_s` with pruned
    experts. Nobody has published such kernels: they are assumed to differ from those for whole
    experts as single products were measured to.
    """
    load = Load.from_rows(rows_RG, whole.tile_rows)
    operands = _pruned_operands(
        Operands.from_format(accelerator, dtype, whole.computes_in),
        fit,
        in_features,
        out_features,
        dtype,
        pruning,
    )
    kernel = _pruned_kernel(whole, fit)
    seen_R = load.rows if choices_R is None else choices_R
    seconds = grouped_product_s(
        accelerator, kernel, load, in_features, out_features, operands, seen_R
    )
    return _add_expansion(
        seconds, accelerator, kernel, fit, load.touched, in_features * out_features
    )


def _pruned_operands(
    operands: Operands,
    fit: PrunedFit,
    in_features: int,
    out_features: int,
    dtype: str,
    pruning: Pruning,
) -> Operands:
    """Properties of a number format in a product with a pruned matrix."""
    size = in_features * out_features
    share = pruning.num_stored(out_features, in_features) / size if fit.skips_zeros else 1.0
    stored = stored_bytes(pruning, out_features, in_features, BYTES_PER_ELEMENT[dtype])
    return operands._replace(
        flops_per_s=operands.flops_per_s * fit.compute_ratio / max(share, 1.0 / size),
        weight_bytes=stored / size,
        feeding=1.0,  # what is stored is unpacked into whole tiles
    )


def _pruned_kernel(whole: AnyFit, fit: PrunedFit) -> AnyFit:
    """Fit of whole products, at the rates that the pruned kernel reaches of theirs."""
    memory_fraction = min(whole.memory_fraction * fit.memory_ratio, 1.0)
    return whole.model_copy(
        update={"memory_fraction": memory_fraction, "floor_s": whole.floor_s + fit.floor_s}
    )


def _add_expansion(
    seconds: Floats,
    accelerator: AcceleratorSpec,
    kernel: GemmFit | GroupedGemmFit,
    fit: PrunedFit,
    matrices: Floats,
    size: int,
) -> Floats:
    """Add the time to expand ``matrices`` of ``size`` weights, where the kernel does; 0 where there
    is no product.
    """
    if not fit.expand_bytes:
        return seconds
    bytes_per_s = accelerator.memory_bytes_per_s * kernel.memory_fraction
    expand_s = matrices * (size * fit.expand_bytes / bytes_per_s)
    both_s = (seconds**kernel.overlap + expand_s**kernel.overlap) ** (1 / kernel.overlap)
    return np.where(seconds > 0, both_s, 0.0)
