"""Leaf switches joined by spines that carry less than all cards together."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor, Nodes, Seed, Spines
from simulator.config.cluster import ClusterSpec
from simulator.policies.topology import Fabric, Wiring

_MASK = (1 << 64) - 1


class LeafSpine(Frozen):
    """Nodes under one leaf reach each other at full rate; traffic between leaves shares the leaf's
    uplinks: spread evenly over all, as adaptive routing does, or each flow on one (ECMP).
    """

    oversubscription: Factor = 1.0
    """Ratio of the rate of all cards under a leaf to the rate of its uplinks; 1 = non-blocking."""
    nodes_per_leaf: Nodes = 2
    """Nodes under one leaf switch."""
    spines: Spines | None = None
    """Number of spine switches, each with one of equal links to every leaf: what one GPU sends to
    another goes by the spine that a hash of the two says (equal-cost multipath, RFC 2992), so that
    flows collide on a link while others idle; absent = evenly over all uplinks."""
    hash_seed: Seed = 0
    """Seed of the hash: other collisions, as likely."""

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        wiring = Wiring(cluster, num_ranks)
        (out, into), (card_out, card_into) = wiring.add_gpu_ports()
        leaf_out, leaf_into = out, into
        if wiring.has_several_nodes:
            count, label = wiring.node[-1] // self.nodes_per_leaf + 1, "leaf"
            width = self.nodes_per_leaf * cluster.gpus_per_node / self.oversubscription
            if self.spines is not None:
                count, label, width = count * self.spines, "uplink", width / self.spines
            leaf_out, leaf_into = wiring.add_ports(
                "scale_out", wiring.scale_out, count, label, width
            )

        def find_path(source: int, destination: int) -> tuple[int, ...]:
            here, there = wiring.node[source], wiring.node[destination]
            if here == there:
                return out[source], into[destination]
            leaf, far_leaf = here // self.nodes_per_leaf, there // self.nodes_per_leaf
            up, down = (self._find_uplink(one, source, destination) for one in (leaf, far_leaf))
            spine = () if leaf == far_leaf else (leaf_out[up], leaf_into[down])
            return card_out[source], *spine, card_into[destination]

        return wiring.freeze(find_path)

    def _find_uplink(self, leaf: int, source: int, destination: int) -> int:
        """Find the link of a leaf to the spine that a flow takes."""
        if self.spines is None:
            return leaf
        return leaf * self.spines + _hash(self.hash_seed, source, destination) % self.spines


def _hash(*numbers: int) -> int:
    """Mix whole numbers into one that is equally likely to be any (splitmix64; Steele, Lea and
    Flood, OOPSLA 2014).
    """
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed
