"""GPUs on PCIe slots of one or two sockets; traffic between sockets shares the link between
them.
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor, ReplicaGpus
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric, Wiring


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
        (out, into), (far_out, far_into) = wiring.add_gpu_ports()
        sockets_per_node = -(-cluster.gpus_per_node // self.gpus_per_socket)
        socket = [
            node * sockets_per_node + rank % cluster.gpus_per_node // self.gpus_per_socket
            for rank, node in enumerate(wiring.node)
        ]
        socket_out, socket_into = wiring.add_ports(
            "scale_up", cluster.scale_up, socket[-1] + 1, "socket", self.socket_link_slots
        )

        def find_path(source: int, destination: int) -> tuple[int, ...]:
            here, there = socket[source], socket[destination]
            if wiring.node[source] != wiring.node[destination]:
                return far_out[source], far_into[destination]
            between = () if here == there else (socket_out[here], socket_into[there])
            return out[source], *between, into[destination]

        return wiring.freeze(find_path)
