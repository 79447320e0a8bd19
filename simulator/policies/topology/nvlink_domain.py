"""A rack-scale NVLink domain (NVL72): every GPU reaches every other at full NVLink rate; racks are
joined by network cards.
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric, Wiring


class NVLinkDomain(Frozen):
    """Inside a domain the NVLink ports of both GPUs; between domains a network card each, on one
    non-blocking network.
    """

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        near, far = wiring.add_gpu_ports()

        def find_path(source: int, destination: int) -> tuple[int, ...]:
            is_near = wiring.node[source] == wiring.node[destination]
            out, into = near if is_near else far
            return out[source], into[destination]

        return wiring.freeze(find_path)
