"""GPUs on PCIe slots of one or two sockets; traffic between sockets shares the link between
them.
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor, ReplicaGpus
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric
from simulator.policies.topology._ports import Wiring


class PCIe(Frozen):
    """A message crosses the sender's slot, the link between sockets where they differ, and the
    receiver's slot.
    """

    gpus_per_socket: ReplicaGpus = 4
    """GPUs of one socket."""
    socket_link_slots: Factor = 2.0
    """Ratio of the rate of the link between sockets to that of a PCIe slot (assumed: a UPI or xGMI
    bundle carries about two x16 slots)."""

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        out, into = wiring.ports("scale_up", cluster.scale_up, num_ranks)
        far_out, far_into = (
            wiring.ports("scale_out", wiring.scale_out, num_ranks)
            if wiring.has_several_nodes
            else (out, into)
        )
        sockets_per_node = -(-cluster.gpus_per_node // self.gpus_per_socket)
        socket = [
            node * sockets_per_node + rank % cluster.gpus_per_node // self.gpus_per_socket
            for rank, node in enumerate(wiring.node)
        ]
        num_sockets = socket[-1] + 1
        socket_out, socket_into = wiring.ports(
            "scale_up", cluster.scale_up, num_sockets, "socket", self.socket_link_slots
        )
        for source, destination in wiring.pairs():
            here, there = socket[source], socket[destination]
            if wiring.node[source] != wiring.node[destination]:
                wiring.path(source, destination, far_out[source], far_into[destination])
            elif here == there:
                wiring.path(source, destination, out[source], into[destination])
            else:
                wiring.path(
                    source,
                    destination,
                    out[source],
                    socket_out[here],
                    socket_into[there],
                    into[destination],
                )
        return wiring.freeze()
