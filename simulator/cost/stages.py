"""Transfers of hidden vectors from one pipeline stage to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Floats
from simulator.config.calibration import Calibration, CollectiveFit
from simulator.config.calibration.communication import doublings
from simulator.policies.messages import Messages
from simulator.policies.topology import Fabric
from simulator.work.layout import Layout

VECTORS = 2
"""Hidden vectors of a token that are sent: the block's output and the residual beside it (vLLM's
``IntermediateTensors``, SGLang's ``PPProxyTensors``)."""
_OPERATION = "all_gather"
"""Collective that was measured in place of a send: an all-gather of two GPUs puts the same bytes on
each link."""


@dataclass(frozen=True)
class Crossing:
    """Transfer from one stage to the next, each rank to its counterpart, all at once."""

    port_bytes_per_s: float
    """Peak bytes per second of the busiest link, for each byte that each rank sends."""
    is_between_nodes: bool


@dataclass(frozen=True)
class Sends:
    """Transfers between all stages of a replica's pipeline."""

    crossings: tuple[Crossing, ...]
    fit: CollectiveFit

    def seconds(self, num_bytes: Floats) -> Floats:
        """Seconds of all transfers, one after the other.

        Args:
            num_bytes: bytes that each rank sends in each transfer, ``[n]``.
        """
        total = np.zeros(len(num_bytes))
        for crossing in self.crossings:
            start_s, carry_s = self.fit.parts_s(
                2.0 * num_bytes, 2.0, 1.0, crossing.port_bytes_per_s
            )
            if crossing.is_between_nodes:
                start_s = (
                    start_s
                    + self.fit.scale_out_latency_s
                    + self.fit.latency_per_doubling_s * float(doublings(2))
                )
                carry_s = (
                    num_bytes / crossing.port_bytes_per_s / (self.fit.scale_out_fraction or 1.0)
                )
            total += np.where(num_bytes > 0, start_s + carry_s, 0.0)
        return total


def make_sends(layout: Layout, fabric: Fabric, calibration: Calibration) -> Sends:
    """Price the transfers between stages of one replica.

    Args:
        fabric: links between all GPUs of the replica.
    """
    peaks_L = np.array([link.bytes_per_s for link in fabric.links])
    ranks = np.arange(layout.num_ranks)
    crossings = []
    for stage in range(layout.pp - 1):
        senders = ranks + stage * layout.num_ranks
        receivers = senders + layout.num_ranks
        sent = Messages(
            layout.num_gpus,
            senders.astype(np.int32),
            receivers.astype(np.int32),
            np.ones(len(ranks)),
        )
        busiest_s = float((fabric.sum_by_link(sent) / peaks_L).max())
        crosses = bool((fabric.node_R[senders] != fabric.node_R[receivers]).any())
        crossings.append(Crossing(1.0 / busiest_s, crosses))
    return Sends(tuple(crossings), calibration.collective[_OPERATION])
