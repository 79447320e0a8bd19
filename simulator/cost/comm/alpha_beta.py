"""Latency by number of nodes, plus the busiest link's bytes over its achieved rate (Hockney's alpha-beta model, per link)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cost.comm import Exchange, Operation
from simulator.errors import UserError
from simulator.spec.base import Frozen
from simulator.spec.calibration import Calibration, OperationFit
from simulator.spec.host import HostRates
from simulator.topology import Fabric


class AlphaBeta(Frozen):
    """The constants come from the calibration, one set an operation."""

    def prepare(self, fabric: Fabric, calibration: Calibration | HostRates) -> AlphaBetaModel:
        if isinstance(calibration, HostRates):
            raise UserError(
                "communication kind 'alpha_beta' needs shares of the wires' peaks; the calibration holds times of a machine"
            )
        return AlphaBetaModel(fabric, calibration)


@dataclass(frozen=True)
class AlphaBetaModel:
    """:class:`AlphaBeta` on one fabric."""

    fabric: Fabric
    calibration: Calibration

    def exchange(self, operation: Operation, bytes_SR: NDArray[np.float64]) -> Exchange:
        if not bytes_SR.any():
            return Exchange.nothing()
        busy_s = self.fabric.bytes_per_link(bytes_SR) / self.link_bytes_per_s(operation)
        return Exchange(self.latency_s(operation, self.fabric.num_nodes, self.fabric.num_ranks), busy_s, bytes_SR)

    def all_reduce(self, num_bytes: float, ranks: tuple[int, ...]) -> Exchange:
        """A ring: each rank passes ``2 (n - 1) / n`` of the data to the next one (Patarasuk and Yuan 2009)."""
        size = len(ranks)
        bytes_SR = np.zeros((self.fabric.num_ranks, self.fabric.num_ranks))
        if size == 1 or num_bytes == 0:
            return Exchange.nothing()
        for rank, following in zip(ranks, ranks[1:] + ranks[:1], strict=True):
            bytes_SR[rank, following] = 2.0 * (size - 1) / size * num_bytes
        busy_s = self.fabric.bytes_per_link(bytes_SR) / self.link_bytes_per_s("all_reduce")
        num_nodes = len(np.unique(self.fabric.node_R[list(ranks)]))
        return Exchange(self.latency_s("all_reduce", num_nodes, size), busy_s, bytes_SR)

    def link_bytes_per_s(self, operation: Operation) -> NDArray[np.float64]:
        fit = self._fit(operation)
        share = {"scale_up": fit.scale_up_fraction, "scale_out": fit.scale_out_fraction}
        return np.array([link.bytes_per_s * share[link.kind] for link in self.fabric.links])

    def latency_s(self, operation: Operation, num_nodes: int, num_ranks: int) -> float:
        return self._fit(operation).total_latency_s(num_nodes, num_ranks)

    def _fit(self, operation: Operation) -> OperationFit:
        if operation == "all_reduce":
            return self.calibration.collective[operation]
        return self.calibration.exchange["low_latency"][operation]
