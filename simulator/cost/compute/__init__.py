"""Cost models of computation, one in a file."""

from __future__ import annotations

from typing import Literal, Protocol

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.host import HostRates
from simulator.config.sparsity import Pruning
from simulator.cost.kernels.attention import Rates
from simulator.work.context import ContextKernel

__all__ = ["ComputeModel", "ComputePolicy", "Phase", "Rates"]

Phase = Literal["prefill", "decode"]
"""Phase whose kernels compute a sequence: a sequence with one new token is computed by the decode
kernels, whatever the token is for."""


class ComputeModel(Protocol):
    """Compute policy prepared for one accelerator."""

    def gemm_s(
        self,
        rows: Ints,
        in_features: int,
        out_features: int,
        dtype: str,
        copies: int = 1,
        pruning: Pruning | None = None,
    ) -> Floats:
        """Seconds of ``rows x in_features @ in_features x out_features`` for every entry of
        ``rows``; 0 for no rows.

        Args:
            dtype: number format of the weights.
            copies: equal matrices that run as one batch; a pruned one runs by itself.
            pruning: of the matrix; absent = whole.

        Raises:
            UserError: if products with matrices pruned so were not measured.
        """
        ...

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
        """Seconds ``[R]`` of one kernel on each rank in which group ``g`` (an expert) has
        ``rows_RG[r, g]`` tokens.

        Args:
            num_experts: experts of the whole layer, by which engines choose kernels; absent = many.
            kernels: kernels of the exchange that brings the rows, whose layout the experts' kernels
                must take; absent = none.
            choices_R: token-expert pairs of all tokens that each rank sees; absent = those of its
                own experts.
            pruning: of all experts; absent = whole.

        Raises:
            UserError: if products with matrices pruned so were not measured.
        """
        ...

    def context_rates(self, kernel: ContextKernel, phase: Phase) -> Rates:
        """Coefficients of a kernel that reads the attention context. The engine's compiled loop
        evaluates them, so the form is fixed.
        """
        ...

    def mixer_s(self, rows: Ints, hidden_size: int, width: int) -> Floats:
        """Seconds of the small kernels of a layer with a mixer (norms, rotation, residuals) for
        every entry of ``rows``.

        Args:
            width: of what the mixer's first matrices make of a token on this rank (queries, keys
                and values).
        """
        ...

    def ffn_s(self, rows: Ints, hidden_size: int, width: int) -> Floats:
        """Seconds of a dense block or a shared expert beyond its matrices."""
        ...

    def router_s(self, rows: Ints, hidden_size: int, num_experts: int) -> Floats:
        """Seconds of choosing experts beyond the router's matrix."""
        ...

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
        """Seconds ``[R]`` of routed experts beyond their matrices: sorting rows by expert, the
        activation, and adding up.

        Args:
            pairs_R: rows of each rank's experts.
            choices_R: token-expert pairs of all tokens that each rank sees: where every rank sees
                every token, those of other ranks' experts too.
            touched_R: experts of each rank that have rows.
            dtype: number format of the experts' weights.
        """
        ...

    def pack_s(
        self, choices_R: Floats, rows_R: Floats, hidden_size: int
    ) -> tuple[Floats, Floats] | None:
        """Seconds ``[R]`` that each rank takes to pack its rows before they travel, and to add up
        the outputs that come back.

        ``None`` where the kernels of the exchange do both.

        Args:
            choices_R: token-expert pairs of each rank's own tokens.
            rows_R: rows that it sends.
        """
        ...


class ComputePolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def prepare(
        self, accelerator: AcceleratorSpec, calibration: Calibration | HostRates
    ) -> ComputeModel:
        """Prepare to price kernels on ``accelerator``.

        Raises:
            UserError: if the calibration is of another kind than this model needs.
        """
        ...


def check_shares(calibration: Calibration | HostRates, key: str, kind: str) -> Calibration:
    """Return a calibration that holds shares of peaks.

    Args:
        key: key of the deployment that chose the cost model: ``compute`` or ``communication``.
        kind: the cost model.

    Raises:
        UserError: if the calibration holds times of a machine, naming what prices by those.
    """
    if isinstance(calibration, HostRates):
        raise UserError(
            f"{key} kind '{kind}' needs shares of an accelerator's peaks, and the calibration "
            f"holds times of a machine; leave {key} out, which prices by those"
        )
    return calibration
