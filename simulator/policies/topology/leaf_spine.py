"""Leaf switches joined by a spine that carries less than all cards together."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor, Nodes
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric
from simulator.policies.topology._ports import Wiring


class LeafSpine(Frozen):
    """Nodes under one leaf reach each other at full rate; traffic between leaves shares the leaf's
    uplinks.
    """

    oversubscription: Factor = 1.0
    """Ratio of the rate of all cards under a leaf to the rate of its uplinks; 1 = non-blocking."""
    nodes_per_leaf: Nodes = 2
    """Nodes under one leaf switch."""

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        out, into = wiring.ports("scale_up", cluster.scale_up, num_ranks)
        if not wiring.has_several_nodes:
            card_out, card_into, leaf_out, leaf_into = out, into, out, into
        else:
            card_out, card_into = wiring.ports("scale_out", wiring.scale_out, num_ranks)
            width = self.nodes_per_leaf * cluster.gpus_per_node / self.oversubscription
            num_leaves = wiring.node[-1] // self.nodes_per_leaf + 1
            leaf_out, leaf_into = wiring.ports(
                "scale_out", wiring.scale_out, num_leaves, "leaf", width
            )
        for source, destination in wiring.pairs():
            here, there = wiring.node[source], wiring.node[destination]
            if here == there:
                wiring.path(source, destination, out[source], into[destination])
                continue
            leaf, far_leaf = here // self.nodes_per_leaf, there // self.nodes_per_leaf
            spine = () if leaf == far_leaf else (leaf_out[leaf], leaf_into[far_leaf])
            wiring.path(source, destination, card_out[source], *spine, card_into[destination])
        return wiring.freeze()
