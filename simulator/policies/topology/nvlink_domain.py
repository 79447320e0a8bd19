"""A rack-scale NVLink domain (NVL72): every GPU reaches every other at full NVLink rate; racks are
joined by network cards.
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric
from simulator.policies.topology._ports import Wiring


class NVLinkDomain(Frozen):
    """Inside a domain the NVLink ports of both GPUs; between domains a network card each, on one
    non-blocking network.
    """

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        out, into = wiring.ports("scale_up", cluster.scale_up, num_ranks)
        far_out, far_into = (
            wiring.ports("scale_out", wiring.scale_out, num_ranks)
            if wiring.has_several_nodes
            else (out, into)
        )
        for source, destination in wiring.pairs():
            if wiring.node[source] == wiring.node[destination]:
                wiring.path(source, destination, out[source], into[destination])
            else:
                wiring.path(source, destination, far_out[source], far_into[destination])
        return wiring.freeze()
