"""Exchanges between processes of one machine, interpolated from measurements of ``moesim
calibrate`` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.host import ExchangeTable, HostRates
from simulator.cost.comm import Exchange, Operation, Vectors
from simulator.policies.messages import Messages
from simulator.policies.topology import Fabric


class Host(Frozen):
    """Tables by the busiest rank's bytes; needs a calibration that ``moesim calibrate cpu``
    wrote.
    """

    def prepare(
        self, fabric: Fabric, calibration: Calibration | HostRates, accelerator: AcceleratorSpec
    ) -> HostCommModel:
        if not isinstance(calibration, HostRates):
            raise UserError(
                "communication kind 'host' needs a calibration that moesim calibrate cpu wrote"
            )
        if fabric.num_nodes > 1:
            raise UserError(
                "communication kind 'host' knows one machine; its calibration says nothing of "
                "links between several"
            )
        return HostCommModel(fabric, calibration)


@dataclass(frozen=True)
class HostCommModel:
    """Measured exchanges prepared for one plan."""

    fabric: Fabric
    rates: HostRates

    def exchange(
        self, operation: Operation, sent: Messages, vectors: Vectors | None = None
    ) -> Exchange:
        # Unlike kernels on a GPU, processes talk even when there is nothing to send: first they say
        # how much comes.
        table = self._table(operation)
        busy_s = table.seconds_for(self.fabric.sum_by_link(sent))
        return Exchange(table.latency_s, busy_s, sent, table.stagger_s)

    def exchanges(
        self, operation: Operation, sent_X: Sequence[Messages], vectors: Vectors
    ) -> list[Exchange]:
        return [self.exchange(operation, sent, vectors) for sent in sent_X]

    def all_reduce(self, num_bytes: float, ranks: tuple[int, ...]) -> Exchange:
        size = len(ranks)
        if size == 1 or num_bytes == 0:
            return Exchange.empty()
        neighbours = zip(ranks, ranks[1:] + ranks[:1], strict=True)
        ring = dict.fromkeys(neighbours, 2.0 * (size - 1) / size * num_bytes)
        sent = Messages.from_pairs(self.fabric.num_ranks, ring)
        table = self._table("all_reduce")
        seconds = float(table.seconds_for(np.array([num_bytes]))[0])
        return Exchange(
            table.latency_s, np.full(len(self.fabric.links), seconds), sent, table.stagger_s
        )

    def all_reduces_s(self, num_bytes: Floats, ranks: tuple[int, ...]) -> Floats:
        if len(ranks) == 1:
            return np.zeros(len(num_bytes))
        table = self._table("all_reduce")
        return np.where(
            num_bytes > 0, table.stagger_s + table.latency_s + table.seconds_for(num_bytes), 0.0
        )

    def _table(self, operation: Operation) -> ExchangeTable:
        table: ExchangeTable = getattr(self.rates.collectives, operation)
        return table
