"""Rail-optimised nodes: GPU ``i`` of every node is on network ``i``; NVLink changes rails inside
the node.
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric, Wiring


class Rails(Frozen):
    """Between nodes a message leaves by the card of the receiver's rail: over NVLink to that card's
    GPU first where needed.

    This is what NCCL calls PXN, and how rail-optimised clusters are meant to be used (NVIDIA,
    "Doubling all2all Performance with NVIDIA Collective Communication Library 2.12", 2022). Kernels
    that post to their own card cross rails in the switches, so what a busy rank sends leaves by
    that one card.
    """

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        (out, into), (card_out, card_into) = wiring.add_gpu_ports()

        def find_path(source: int, destination: int) -> tuple[int, ...]:
            if wiring.node[source] == wiring.node[destination]:
                return out[source], into[destination]
            rail = destination % cluster.gpus_per_node
            relay = min(wiring.node[source] * cluster.gpus_per_node + rail, num_ranks - 1)
            change = () if relay == source else (out[source], into[relay])
            return *change, card_out[relay], card_into[destination]

        def find_own_card(source: int, destination: int) -> tuple[int, ...]:
            if wiring.node[source] == wiring.node[destination]:
                return out[source], into[destination]
            return card_out[source], card_into[destination]

        return wiring.freeze(find_path, find_own_card)
