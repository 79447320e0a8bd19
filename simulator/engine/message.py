"""Wires of the ``message`` fidelity: every message is a process that crosses its links in parcels,
queueing at each.

The reference that the ``rank`` fidelity is tested against. Slow on purpose: at 32 ranks an exchange
is some 30,000 events.
"""

from __future__ import annotations

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.policies.topology import Fabric

_PARCELS = 8
"""Parcels that a message is cut into. A link serves waiting parcels in turn, so messages that share
it progress together, and the last parcel's extra hops cost an eighth of a message instead of a
whole one."""


class MessageWires:
    """Transport of every message on its own. A link carries one parcel at a time, first come, first
    served.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric) -> None:
        self.env = env
        self.fabric = fabric
        self._lanes = [simpy.Resource(env) for _ in fabric.links]

    def carry(self, exchange: Exchange) -> Event:
        """Start all messages of an exchange after its latency."""
        return self.env.process(self._carry(exchange))

    def _carry(self, exchange: Exchange) -> ProcessGenerator:
        yield self.env.timeout(exchange.latency_s)
        if not exchange.busy_s.size:
            return
        fabric = self.fabric.direct if exchange.is_direct else self.fabric
        bytes_L = fabric.sum_by_link(exchange.sent)
        seconds_per_byte_L = np.divide(
            exchange.busy_s, bytes_L, out=np.zeros(len(bytes_L)), where=bytes_L > 0
        )
        bytes_SR, messages = exchange.bytes_SR, []
        for source in range(self.fabric.num_ranks):
            for destination in self._order(source):
                num_bytes = float(bytes_SR[source, destination])
                if num_bytes:
                    path = [int(link) for link in fabric.path_SRH[source, destination] if link >= 0]
                    messages.append(
                        self.env.process(self._message(path, num_bytes, seconds_per_byte_L))
                    )
        yield self.env.all_of(messages)

    def _order(self, source: int) -> list[int]:
        """Order in which a sender serves its receivers: from its own place in its own and each
        following node on, so that senders do not all begin with rank 0.
        """
        node_R = self.fabric.node_R
        nodes = [np.flatnonzero(node_R == node) for node in np.unique(node_R)]
        own = next(n for n, ranks_P in enumerate(nodes) if source in ranks_P)
        place = source - int(nodes[own][0])
        turns = (np.roll(ranks_P, -place) for ranks_P in nodes[own:] + nodes[:own])
        return [int(rank) for ranks_P in turns for rank in ranks_P if rank != source]

    def _message(
        self, path: list[int], num_bytes: float, seconds_per_byte_L: NDArray[np.float64]
    ) -> ProcessGenerator:
        """Hand the parcels to the first link one after another; each crosses the rest of the path
        by itself.
        """
        parcel = num_bytes / _PARCELS
        arrivals = []
        for _ in range(_PARCELS):
            yield self.env.process(self._hop(path[0], parcel * seconds_per_byte_L[path[0]]))
            arrivals.append(self.env.process(self._parcel(path[1:], parcel, seconds_per_byte_L)))
        yield self.env.all_of(arrivals)

    def _parcel(
        self, path: list[int], num_bytes: float, seconds_per_byte_L: NDArray[np.float64]
    ) -> ProcessGenerator:
        for link in path:
            yield self.env.process(self._hop(link, num_bytes * seconds_per_byte_L[link]))

    def _hop(self, link: int, seconds: float) -> ProcessGenerator:
        with self._lanes[link].request() as turn:
            yield turn
            yield self.env.timeout(seconds)
