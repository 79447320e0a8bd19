"""Ports that all topologies build from: for each GPU one into the fast domain and, where there are
several domains, one out of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.config.cluster import ClusterSpec, WireSpec
from simulator.policies.topology import Fabric, Link


class Wiring:
    """Collector of links and paths, which :meth:`freeze` makes a :class:`Fabric`."""

    def __init__(self, cluster: ClusterSpec, num_ranks: int) -> None:
        self.cluster = cluster
        self.num_ranks = num_ranks
        self.node = [rank // cluster.gpus_per_node for rank in range(num_ranks)]
        self._links: list[Link] = []
        self._paths: dict[tuple[int, int], tuple[int, ...]] = {}
        self._own_card: dict[tuple[int, int], tuple[int, ...]] = {}

    def ports(
        self, kind: str, wire: WireSpec, count: int, label: str = "gpu", width: float = 1.0
    ) -> tuple[list[int], list[int]]:
        """Add ``count`` pairs of links of one kind and return their indices, out and in. ``width``
        is the number of wires in a bundle.
        """
        first = len(self._links)
        for direction in ("out", "in"):
            self._links += [
                Link(
                    f"{label} {number} {kind} {direction}",
                    kind,
                    wire.bytes_per_s * width,
                    wire.latency_s,
                    number if label == "gpu" else -1,
                )
                for number in range(count)
            ]
        return list(range(first, first + count)), list(range(first + count, first + 2 * count))

    def path(self, source: int, destination: int, *links: int) -> None:
        """Set the links that a message crosses."""
        self._paths[source, destination] = links

    def own_card_path(self, source: int, destination: int, *links: int) -> None:
        """Set the links of a message that leaves by its sender's own card, where that is not the
        path.
        """
        self._own_card[source, destination] = links

    def pairs(self) -> list[tuple[int, int]]:
        """List every ordered pair of different ranks."""
        return [(s, r) for s in range(self.num_ranks) for r in range(self.num_ranks) if s != r]

    @property
    def has_several_nodes(self) -> bool:
        """Whether the ranks lie in more than one fast domain."""
        return self.node[-1] > 0

    @property
    def scale_out(self) -> WireSpec:
        """Wire between domains; the cluster's own check makes it exist where there are several."""
        if self.cluster.scale_out is None:
            raise ValueError(f"cluster {self.cluster.name} has several nodes but no scale_out")
        return self.cluster.scale_out

    def freeze(self) -> Fabric:
        """The fabric."""
        own_card = self._table({**self._paths, **self._own_card}) if self._own_card else None
        return Fabric(
            tuple(self._links),
            self._table(self._paths),
            np.array(self.node, dtype=np.int64),
            own_card,
        )

    def _table(self, paths: dict[tuple[int, int], tuple[int, ...]]) -> NDArray[np.int64]:
        hops = max((len(path) for path in paths.values()), default=1)
        path_SRH = np.full((self.num_ranks, self.num_ranks, hops), -1, dtype=np.int64)
        for (source, destination), links in paths.items():
            path_SRH[source, destination, : len(links)] = links
        return path_SRH
