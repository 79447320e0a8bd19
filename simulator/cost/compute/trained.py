"""Roofline model of training frameworks, whose experts are one matrix product each.

Tokens are permuted by expert first, and the products of a rank's experts are launched on several
streams (Megatron Core's ``TEGroupedMLP``, Transformer Engine's ``general_grouped_gemm``), so each
is priced as the dense product of its rows. Everything else is priced as ``roofline`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.host import HostRates
from simulator.cost.compute.roofline import RooflineModel
from simulator.cost.shares import check_shares

_HIDDEN_MOVES, _WIDTH_MOVES = 4.0, 3.0
"""Times that a row's hidden vector and inner vector are read or written beside the products:
permuted there and back, gate and activation (two inner vectors in, one out)."""


class Trained(Frozen):
    """Experts as dense products, their rows permuted before and after."""

    def prepare(
        self, accelerator: AcceleratorSpec, calibration: Calibration | HostRates
    ) -> TrainedModel:
        return TrainedModel(accelerator, check_shares(calibration, "compute", "trained"))


@dataclass(frozen=True)
class TrainedModel(RooflineModel):
    """Model prepared for one accelerator."""

    def grouped_gemm_s(
        self,
        rows_RG: NDArray[np.float64],
        in_features: int,
        out_features: int,
        dtype: str,
        num_experts: int | None = None,
        kernels: str | None = None,
        choices_R: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        rows, place = np.unique(np.rint(rows_RG), return_inverse=True)
        seconds = self.gemm_s(rows.astype(np.int64), in_features, out_features, dtype)
        total_R: NDArray[np.float64] = seconds[place.reshape(rows_RG.shape)].sum(axis=1)
        return total_R

    def expert_moves_s(
        self,
        pairs_R: NDArray[np.float64],
        choices_R: NDArray[np.float64],
        touched_R: NDArray[np.int64],
        hidden_size: int,
        width: float,
        dtype: str,
        num_experts: int | None = None,
        kernels: str | None = None,
    ) -> NDArray[np.float64]:
        moved = (_HIDDEN_MOVES * hidden_size + _WIDTH_MOVES * width) * 2.0
        return self.stream_s(pairs_R * moved)
