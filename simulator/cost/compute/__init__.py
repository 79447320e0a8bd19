"""How long kernels take. One cost model a file."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.calibration import Calibration

Phase = Literal["prefill", "decode"]


class Rates(NamedTuple):
    """A priced roofline: ``floor_s + max(FLOPs / flops_per_s, bytes / bytes_per_s)``."""

    flops_per_s: float
    bytes_per_s: float
    floor_s: float


class ComputeModel(Protocol):
    """A compute policy made ready for one accelerator."""

    def gemm_s(
        self, rows: NDArray[np.int64], in_features: int, out_features: int, dtype: str, copies: int = 1
    ) -> NDArray[np.float64]:
        """Seconds of ``rows x in_features @ in_features x out_features`` for every entry of ``rows``; 0 for no rows.

        Args:
            dtype: of the weights.
            copies: equal matrices that run as one batch.
        """
        ...

    def grouped_gemm_s(self, rows_RG: NDArray[np.float64], in_features: int, out_features: int, dtype: str) -> NDArray[np.float64]:
        """Seconds ``[R]`` of one kernel a rank in which group ``g`` (an expert) has ``rows_RG[r, g]`` tokens."""
        ...

    def context_rates(self, phase: Phase) -> Rates:
        """How fast attention reads the context. The engine's compiled loop evaluates these, so the form is fixed."""
        ...

    def stream_s(self, num_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds to read or write bytes that no matrix product hides (norms, permutes, copies)."""
        ...


class ComputePolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def prepare(self, accelerator: AcceleratorSpec, calibration: Calibration) -> ComputeModel:
        """Price kernels on ``accelerator``."""
        ...
