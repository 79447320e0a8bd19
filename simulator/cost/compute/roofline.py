"""Roofline with floors and tile quantisation (Williams et al. 2009; NVIDIA, "Matrix Multiplication Background").

A matrix product takes ``floor + (compute^3 + memory^3)^(1/3) + quantise``: computing whole output tiles, streaming every operand
once, and, for formats that need it, a pass that converts the input. Compute and memory overlap, but not perfectly: between
the exponents 1 (no overlap) and infinity (perfect), bf16 GEMMs ask for 3.0 on H100 and 2.5 on B200.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cost.compute import Phase, Rates
from simulator.errors import UserError
from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.base import Frozen
from simulator.spec.calibration import Calibration, KernelFit
from simulator.spec.dtypes import BYTES_PER_ELEMENT
from simulator.spec.host import HostRates
from simulator.spec.pruning import Pruning

_TILES = ((16, 128), (32, 128), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128))
"""Output tiles (rows, columns) that GEMM libraries choose from; the fastest one is taken, as their heuristics mean to."""
_REREAD = 40.0
"""A tile of ``a x b`` reads ``1/a + 1/b`` numbers for each multiply-add, which slows it by ``1 + 40 (1/a + 1/b)``. Fitted: 21 to
50 on bf16 GEMMs on H100 and B200, 11 to 51 on grouped GEMMs on H100, with little to choose between."""
_LARGEST_TILE_READS = 1 + _REREAD * (1 / 128 + 1 / 256)
_OVERLAP = 3.0
_STREAM_PASSES = 8.0
"""Times that a layer's small kernels (two norms, two residuals) read or write the hidden vectors."""
_INPUT_BYTES = {"fp8": 1.0, "int8": 1.0, "nvfp4": 0.5625}
"""Of a number in the input as the product reads it; others stay in 16 bits, as with weight-only formats."""


class Roofline(Frozen):
    """Compute in whole tiles and streaming the operands once, partly overlapped, plus a floor."""

    def prepare(self, accelerator: AcceleratorSpec, calibration: Calibration | HostRates) -> RooflineModel:
        if isinstance(calibration, HostRates):
            raise UserError(
                "compute kind 'roofline' needs shares of an accelerator's peaks; the calibration holds times of a machine"
            )
        return RooflineModel(accelerator, calibration)


@dataclass(frozen=True)
class RooflineModel:
    """:class:`Roofline` on one accelerator."""

    accelerator: AcceleratorSpec
    calibration: Calibration

    def gemm_s(
        self, rows: NDArray[np.int64], in_features: int, out_features: int, dtype: str, copies: int = 1
    ) -> NDArray[np.float64]:
        fit = self.calibration.kernel("gemm", dtype)
        return self._matrix_s(fit, np.asarray(rows, dtype=np.float64)[..., None], in_features, out_features, dtype, copies)

    def grouped_gemm_s(self, rows_RG: NDArray[np.float64], in_features: int, out_features: int, dtype: str) -> NDArray[np.float64]:
        # One expert on a rank is an ordinary matrix product, and engines run it as one: the dense model and the 1-expert MoE agree.
        fit = self.calibration.kernel("gemm" if rows_RG.shape[1] == 1 else "grouped_gemm", dtype)
        return self._matrix_s(fit, rows_RG, in_features, out_features, dtype)

    def context_rates(self, phase: Phase) -> Rates:
        fit = self.calibration.attention[phase]
        return Rates(self._flops_per_s("bf16", fit), self._bytes_per_s(fit), fit.floor_s)

    def mixer_s(self, rows: NDArray[np.int64], hidden_size: int, width: int) -> NDArray[np.float64]:
        num_bytes = rows.astype(np.float64) * (hidden_size * 2.0 * _STREAM_PASSES)
        return np.where(rows > 0, self.calibration.engine.layer_s + self.stream_s(num_bytes), 0.0)

    def ffn_s(self, rows: NDArray[np.int64], hidden_size: int, width: int) -> NDArray[np.float64]:
        return np.zeros(len(rows))  # fused into the products

    def router_s(self, rows: NDArray[np.int64], hidden_size: int, num_experts: int) -> NDArray[np.float64]:
        return np.zeros(len(rows))

    def expert_moves_s(
        self, pairs_R: NDArray[np.float64], touched_R: NDArray[np.int64], hidden_size: int, width: float
    ) -> NDArray[np.float64]:
        # The activation between the two products, and sorting the rows by expert and back: read once, written once.
        return self.stream_s(pairs_R * ((3.0 * width + 4.0 * hidden_size) * 2.0))

    def pack_s(self, choices_R: NDArray[np.float64], rows_R: NDArray[np.float64], hidden_size: int) -> None:
        return None  # the kernels of the exchange read tokens where they lie

    def pruned_s(
        self, rows: NDArray[np.int64], in_features: int, out_features: int, dtype: str, pruning: Pruning
    ) -> NDArray[np.float64]:
        raise UserError(f"no measured products with pruned matrices ('{pruning.kind}') on {self.accelerator.title}")

    def stream_s(self, num_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds to read or write bytes that no matrix product hides."""
        return np.asarray(num_bytes / self._bytes_per_s(self.calibration.kernel("gemm", "bf16")), dtype=np.float64)

    def _matrix_s(
        self, fit: KernelFit, rows_G: NDArray[np.float64], in_features: int, out_features: int, dtype: str, copies: int = 1
    ) -> NDArray[np.float64]:
        """Seconds of one kernel that multiplies each group's rows (last axis) by the group's own matrix."""
        rows = rows_G.sum(axis=-1) * copies
        touched = (rows_G > 0).sum(axis=-1) * copies
        weight_bytes = touched * (in_features * out_features * BYTES_PER_ELEMENT[dtype])
        operand_bytes = rows * (in_features * _INPUT_BYTES.get(dtype, 2.0) + out_features * 2.0)
        memory_s = (weight_bytes + operand_bytes) / self._bytes_per_s(fit)
        compute_s = self._compute_s(fit, rows_G, in_features, out_features, dtype, copies)
        quantise_s = rows * (in_features * fit.quantise_bytes) / self._bytes_per_s(fit)
        busy_s = (compute_s**_OVERLAP + memory_s**_OVERLAP) ** (1 / _OVERLAP)
        return np.where(rows > 0, fit.floor_s + busy_s + quantise_s, 0.0)

    def _compute_s(
        self, fit: KernelFit, rows_G: NDArray[np.float64], in_features: int, out_features: int, dtype: str, copies: int
    ) -> NDArray[np.float64]:
        """Seconds to compute whole tiles, each on one multiprocessor.

        A kernel starts a tile wherever one ends (persistent kernels, stream-K), so waves need not be whole: charging whole waves
        raised the 90th percentile of the error of bf16 GEMMs on B200 from 0.16 to 0.27. Fewer tiles than multiprocessors are split along ``in_features``, down
        to ``min_split_k``.
        """
        count = self.accelerator.num_multiprocessors
        rate = self._flops_per_s(dtype, fit) / count
        seconds = np.full(rows_G.shape[:-1], np.inf)
        for tile_rows, tile_columns in _TILES:
            tiles = np.ceil(rows_G / tile_rows).sum(axis=-1) * (np.ceil(out_features / tile_columns) * copies)
            depth = np.maximum(tiles / count * in_features, min(in_features, fit.min_split_k))
            slowdown = (1 + _REREAD * (1 / tile_rows + 1 / tile_columns)) / _LARGEST_TILE_READS
            seconds = np.minimum(seconds, depth * (2.0 * tile_rows * tile_columns * slowdown / rate))
        return seconds

    def _flops_per_s(self, dtype: str, fit: KernelFit) -> float:
        return self.accelerator.flops_per_s(dtype) * fit.compute_fraction

    def _bytes_per_s(self, fit: KernelFit) -> float:
        return self.accelerator.memory_bytes_per_s * fit.memory_fraction
