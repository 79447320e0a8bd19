"""Roofline model with floors and tile quantisation (Williams et al. 2009; NVIDIA, "Matrix
Multiplication Background").

A matrix product takes ``floor + (compute^p + memory^p)^(1/p) + quantise``: computing whole output
tiles, streaming the operands, and, for formats that need it, a pass that converts the input.
Compute and memory overlap, but not perfectly: between the exponents 1 (no overlap) and infinity
(perfect), bf16 GEMMs ask for 2.9 on H100 and 2.0 on B200.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration, PrunedFit
from simulator.config.host import HostRates
from simulator.config.sparsity import Pruning
from simulator.cost.compute import Phase, Rates, check_shares
from simulator.cost.kernels.attention import context_rates
from simulator.cost.kernels.gemm import gemm_s
from simulator.cost.kernels.grouped_gemm import grouped_gemm_s, moves_s
from simulator.cost.kernels.pruned import pruned_grouped_s, pruned_s
from simulator.work.context import ContextKernel

_STREAM_PASSES = 8.0
"""Number of times that a layer's small kernels (two norms, two residuals) read or write the hidden
vectors."""


class Roofline(Frozen):
    """Compute in whole tiles and streaming the operands once, partly overlapped, plus a floor."""

    def prepare(
        self, accelerator: AcceleratorSpec, calibration: Calibration | HostRates
    ) -> RooflineModel:
        return RooflineModel(accelerator, check_shares(calibration, "compute", "roofline"))


@dataclass(frozen=True)
class RooflineModel:
    """Roofline model on one accelerator."""

    accelerator: AcceleratorSpec
    calibration: Calibration

    def gemm_s(
        self,
        rows: Ints,
        in_features: int,
        out_features: int,
        dtype: str,
        copies: int = 1,
        pruning: Pruning | None = None,
    ) -> Floats:
        fit, found = self.calibration.matrices(dtype), np.asarray(rows, dtype=np.float64)
        shape = found, in_features, out_features, dtype
        if pruning is None:
            return gemm_s(self.accelerator, fit, *shape, copies)
        return pruned_s(self.accelerator, fit, self._find_pruned(pruning, dtype), *shape, pruning)

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
        gpu, fit = self.accelerator, self.calibration.experts(dtype, num_experts, kernels)
        shape = rows_RG, in_features, out_features, dtype
        if pruning is None:
            seconds_R = grouped_gemm_s(gpu, fit, *shape, choices_R)
        else:
            pruned = self._find_pruned(pruning, dtype)
            seconds_R = pruned_grouped_s(gpu, fit, pruned, *shape, pruning, choices_R)
        return self.calibration.engine.expert_ratio * seconds_R

    def context_rates(self, kernel: ContextKernel, phase: Phase) -> Rates:
        fit = self.calibration.attention_fit(
            phase, kernel.kv_dtype, is_latent=kernel.kind == "latent", is_served=True
        )
        return context_rates(self.accelerator, fit, kernel, phase)

    def mixer_s(self, rows: Ints, hidden_size: int, width: int) -> Floats:
        num_bytes = rows.astype(np.float64) * (hidden_size * 2.0 * _STREAM_PASSES)
        return np.where(rows > 0, self.calibration.engine.layer_s + self.stream_s(num_bytes), 0.0)

    def ffn_s(self, rows: Ints, hidden_size: int, width: int) -> Floats:
        return np.zeros(len(rows))  # fused into the products

    def router_s(self, rows: Ints, hidden_size: int, num_experts: int) -> Floats:
        return np.zeros(len(rows))

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
        fit = self.calibration.experts(dtype, num_experts, kernels)
        return self.calibration.engine.expert_ratio * moves_s(
            self.accelerator, fit, pairs_R, choices_R, hidden_size, width
        )

    def pack_s(self, choices_R: Floats, rows_R: Floats, hidden_size: int) -> None:
        return None  # the kernels of the exchange read tokens where they lie

    def _find_pruned(self, pruning: Pruning, dtype: str) -> PrunedFit:
        fit = self.calibration.pruned_matrices(pruning.kernels, dtype)
        if fit is None:
            raise UserError(
                f"no measured products with {dtype} matrices pruned '{pruning.kernels}' "
                f"on {self.accelerator.title}"
            )
        return fit

    def stream_s(self, num_bytes: Floats) -> Floats:
        """Seconds to read or write bytes that no matrix product hides."""
        return np.asarray(
            num_bytes
            / (
                self.accelerator.memory_bytes_per_s
                * self.calibration.matrices("bf16").memory_fraction
            ),
            dtype=np.float64,
        )
