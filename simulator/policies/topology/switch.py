"""One switch that joins every GPU; nothing is faster inside a box than between boxes."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric, Wiring


class Switch(Frozen):
    """A message crosses the sender's port and the receiver's. Ports are the slower link where there
    are several nodes.
    """

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        if wiring.has_several_nodes:
            out, into = wiring.add_ports("scale_out", wiring.scale_out, num_ranks)
        else:
            out, into = wiring.add_ports("scale_up", cluster.scale_up, num_ranks)
        return wiring.freeze(lambda source, destination: (out[source], into[destination]))
