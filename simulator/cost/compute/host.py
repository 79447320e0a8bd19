"""Measured times of a machine whose ranks are processes on its cores, interpolated from
measurements of ``moesim calibrate`` there.

Kernels run one after the other, so a block takes the sum of its parts: each matrix from a table of
measured products, and the rest from sums fitted on whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import HostRates, KernelTables
from simulator.config.sparsity import Pruning
from simulator.cost.compute import Phase, Rates
from simulator.work.context import ContextKernel


class Host(Frozen):
    """Tables of measured times; needs a calibration that ``moesim calibrate cpu`` wrote."""

    def prepare(
        self, accelerator: AcceleratorSpec, calibration: Calibration | HostRates
    ) -> HostModel:
        if not isinstance(calibration, HostRates):
            raise UserError(
                "compute kind 'host' needs a calibration that moesim calibrate cpu wrote"
            )
        return HostModel(calibration)


@dataclass(frozen=True)
class HostModel:
    """Measured times prepared for one plan."""

    rates: HostRates

    @property
    def _tables(self) -> KernelTables:
        return self.rates.tables

    def gemm_s(
        self,
        rows: Ints,
        in_features: int,
        out_features: int,
        dtype: str,
        copies: int = 1,
        pruning: Pruning | None = None,
    ) -> Floats:
        return copies * self._multiply(np.asarray(rows, float), in_features * out_features, pruning)

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
        # One expert after the other, each with its own weights.
        found_RG = self._multiply(rows_RG, in_features * out_features, pruning)
        return np.asarray(found_RG.sum(axis=1))

    def _multiply(self, rows: Floats, size: int, pruning: Pruning | None) -> Floats:
        found = self._tables.matrix.seconds_for(rows, size, self.rates.working_bytes)
        return found if pruning is None else found * self._pruned_ratio(rows, pruning)

    def context_rates(self, kernel: ContextKernel, phase: Phase) -> Rates:
        if phase == "prefill":
            seconds = self._tables.prompt.seconds
            return Rates(floor_s=seconds["call"], pair_s=kernel.prefill_flops * seconds["flops"])
        seconds = self._tables.decode.seconds
        return Rates(floor_s=seconds["call"], entry_s=kernel.decode_bytes * seconds["bytes"])

    def mixer_s(self, rows: Ints, hidden_size: int, width: int) -> Floats:
        return np.where(
            rows > 0,
            self._tables.mixer.total(values=rows * float(hidden_size), heads=rows * float(width)),
            0.0,
        )

    def ffn_s(self, rows: Ints, hidden_size: int, width: int) -> Floats:
        return np.where(
            rows > 0,
            self._tables.ffn.total(values=rows * float(hidden_size), hidden=rows * float(width)),
            0.0,
        )

    def router_s(self, rows: Ints, hidden_size: int, num_experts: int) -> Floats:
        return self._tables.router.total(
            values=rows * float(hidden_size), scores=rows * float(num_experts)
        )

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
        return self._tables.experts.total(
            touched=touched_R, values=pairs_R * float(hidden_size), hidden=pairs_R * float(width)
        )

    def pack_s(self, choices_R: Floats, rows_R: Floats, hidden_size: int) -> tuple[Floats, Floats]:
        num_bytes = rows_R * (hidden_size * BYTES_PER_ELEMENT[self.rates.host.dtype])
        return self._tables.pack.total(
            choices=choices_R, bytes=num_bytes
        ), self._tables.unpack.total(bytes=num_bytes)

    def _pruned_ratio(self, rows: Floats, pruning: Pruning) -> Floats:
        """Ratio of a pruned product's time to the whole one's for every entry of ``rows``,
        interpolated in its logarithm between measured rows and sparsities.
        """
        entries = sorted(
            (entry for entry in self.rates.host.pruned if entry.pruning == pruning.kind),
            key=lambda e: e.sparsity,
        )
        if not entries:
            raise UserError(
                f"no measured products with pruned matrices ('{pruning.kind}') "
                f"on {self.rates.host.machine}"
            )
        wanted = np.log(np.maximum(rows, 1)).ravel()
        ratios = [
            np.interp(wanted, np.log(np.array(entry.rows)), np.log(np.array(entry.ratio)))
            for entry in entries
        ]
        known = [entry.sparsity for entry in entries]
        ratio = [np.interp(pruning.sparsity, known, column) for column in np.array(ratios).T]
        return np.asarray(np.exp(ratio)).reshape(rows.shape)
