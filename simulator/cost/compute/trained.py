"""Roofline model of training frameworks, whose experts are one matrix product each.

Tokens are permuted by expert first, and the products of a rank's experts are launched on several
streams (Megatron Core's ``TEGroupedMLP``, Transformer Engine's ``general_grouped_gemm``), so each
is priced as the dense product of its rows. Everything else is priced as ``roofline`` does.

Matrices in 8 bits are multiplied by the library that multiplies those in bf16 (cuBLASLt), so the
fit of bf16 products is taken, at the 8-bit peak. A tensor is converted once, for all products that
read it, by kernels that memory bounds; :meth:`TrainedModel.convert_s` counts their bytes.

With ``S`` as :data:`_EIGHT_BIT_SHARE`, ``f`` the achieved bf16 FLOP/s, ``r`` the ratio of the peaks
and ``B`` the bytes moved for each number, the three products of a ``k x n`` matrix gain ``6 k n (1
- 1 / (r S)) / f`` seconds a token where computing bounds them, and ``B (k + n)`` bytes are moved:
8 bits are faster from ``k n / (k + n) > B f / (6 (1 - 1 / (r S)) bandwidth)`` on, whatever the
number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.host import HostRates
from simulator.config.sparsity import Pruning
from simulator.cost.compute import check_shares
from simulator.cost.compute.roofline import RooflineModel
from simulator.cost.kernels.gemm import Operands, product_s

_HIDDEN_MOVES, _WIDTH_MOVES = 4.0, 3.0
"""Times that a row's hidden vector and inner vector are read or written beside the products:
permuted there and back, gate and activation (two inner vectors in, one out)."""


class _Conversion(NamedTuple):
    """Bytes that are read and written to convert a number of a tensor to 8 bits."""

    alone: float
    behind_norm: float
    """Bytes where the kernel of the norm that makes the tensor does a part of it."""


_CONVERSIONS = {"fp8": _Conversion(6.0, 4.0), "fp8_block": _Conversion(4.0625, 4.0625)}
"""A product's operand is read along its rows in one pass and along its columns in another, so two
8-bit copies are written in one kernel (Transformer Engine, "Handling transposes"). One scale a
tensor (``fp8``, current scaling): 2 bytes are read for the largest number, which the norm's kernel
finds for its own output (``FUSED_NORM_AMAX_FP8`` of ``norm.cpp``), 2 for the conversion, and 2 x 1
written. Blocks (``fp8_block``): 2 read once, and 2 x (1 + 4 / 128) written, as MXFP8 writes
2 x (1 + 1 / 32); norms leave it to a kernel of its own. Not counted: that Blackwell takes one copy
for both in ``fp8``."""
_EIGHT_BIT_SHARE = 0.94
"""Share of the bf16 products' achieved share of the peak that 8-bit products achieve. Measured on
B300 without conversions: the products of a layer of 4,096 x 16,384 over 15,872 tokens take 12.835
ms in bf16 and 6.830 ms in fp8 with blocks, 1.88 times less, and 1.75 times less in MXFP8
(Transformer Engine, "GEMM Profiling Across Precisions")."""


class Trained(Frozen):
    """Experts as dense products, their rows permuted before and after."""

    def prepare(
        self, accelerator: AcceleratorSpec, calibration: Calibration | HostRates
    ) -> TrainedModel:
        return TrainedModel(accelerator, check_shares(calibration, "compute", "trained"))


@dataclass(frozen=True)
class TrainedModel(RooflineModel):
    """Model prepared for one accelerator."""

    def gemm_s(
        self,
        rows: Ints,
        in_features: int,
        out_features: int,
        dtype: str,
        copies: int = 1,
        pruning: Pruning | None = None,
    ) -> Floats:
        if dtype not in _CONVERSIONS or pruning is not None:
            return super().gemm_s(rows, in_features, out_features, dtype, copies, pruning)
        fit, gpu = self.calibration.matrices("bf16"), self.accelerator
        operands = Operands.from_format(gpu, dtype)
        operands = operands._replace(flops_per_s=operands.flops_per_s * _EIGHT_BIT_SHARE)
        return product_s(gpu, fit, rows, in_features, out_features, operands, copies)

    def convert_s(self, numbers: ArrayLike, dtype: str, behind_norm: ArrayLike = 0.0) -> Floats:
        """Seconds to convert numbers of tensors to a format, once for all products that read them;
        0 for formats of 16 bits and more.

        Args:
            behind_norm: further numbers, which a norm's kernel makes.
        """
        moved = _CONVERSIONS.get(dtype, _Conversion(0.0, 0.0))
        return self.stream_s(
            np.asarray(numbers) * moved.alone + np.asarray(behind_norm) * moved.behind_norm
        )

    def grouped_gemm_s(
        self,
        rows_RG: Floats,
        in_features: int,
        out_features: int,
        dtype: str,
        num_experts: int | None = None,
        kernels: str | None = None,
        choices_R: Floats | None = None,
        pruning: Pruning | None = None,
    ) -> Floats:
        rows, place = np.unique(np.rint(rows_RG), return_inverse=True)
        matrix = in_features, out_features, dtype
        seconds = self.gemm_s(rows.astype(np.int64), *matrix, pruning=pruning)
        total_R: Floats = seconds[place.reshape(rows_RG.shape)].sum(axis=1)
        return total_R

    def expert_moves_s(
        self,
        pairs_R: Floats,
        choices_R: Floats,
        touched_R: Ints,
        hidden_size: int,
        width: float,
        dtype: str,
        num_experts: int | None = None,
        kernels: str | None = None,
    ) -> Floats:
        moved = (_HIDDEN_MOVES * hidden_size + _WIDTH_MOVES * width) * 2.0
        return self.stream_s(pairs_R * moved)
