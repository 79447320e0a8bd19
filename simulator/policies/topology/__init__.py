"""Topologies: the links that join the GPUs, and the paths of messages; one topology in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.config.cluster import ClusterSpec, LinkSpec
from simulator.policies.messages import Messages


class Link(NamedTuple):
    """One direction of one link (or of a bundle of equal ones)."""

    name: str
    kind: str
    """Kind of the link, as calibrations distinguish them: ``scale_up`` inside a fast domain,
    ``scale_out`` between domains."""
    bytes_per_s: float
    """Peak bytes per second."""
    latency_s: float
    """Seconds of latency."""
    rank: int = -1
    """Rank whose own port it is; -1 for links that several ranks share."""


@dataclass(frozen=True)
class Fabric:
    """The links of one replica's ranks, and the path of every message."""

    links: tuple[Link, ...]
    path_SRH: Ints
    """Indices into ``links`` of the hops from rank ``s`` to rank ``r``, padded with -1; all -1
    where ``s == r``."""
    node_R: Ints
    """Fast domain of each rank."""
    own_card_SRH: Ints | None = None
    """Paths as in ``path_SRH`` of messages that GPUs hand to their own cards, where the topology's
    paths leave by other ones."""

    @cached_property
    def direct(self) -> Fabric:
        """Fabric of kernels that post to the GPU's own card, whatever the library for collectives
        does.
        """
        return (
            self
            if self.own_card_SRH is None
            else replace(self, path_SRH=self.own_card_SRH, own_card_SRH=None)
        )

    def from_rank(self, first: int) -> Fabric:
        """Fabric of the ranks from one on, counted from there. All links stay, those of the ranks
        before it unused or as relays.
        """
        if first == 0:
            return self
        own_card = self.own_card_SRH
        return Fabric(
            tuple(link._replace(rank=max(link.rank - first, -1)) for link in self.links),
            self.path_SRH[first:, first:],
            self.node_R[first:] - self.node_R[first],
            None if own_card is None else own_card[first:, first:],
        )

    @property
    def num_ranks(self) -> int:
        """Number of ranks, ``R``."""
        return len(self.node_R)

    @cached_property
    def num_nodes(self) -> int:
        """Number of fast domains that the ranks lie in, ``N``."""
        return len(np.unique(self.node_R))

    def sum_by_link(self, sent: Messages) -> Floats:
        """Sum the amounts that cross each link, ``[links]``, in the unit of the messages."""
        return sent.sum_by_link(self.path_SRH, len(self.links))


class TopologyPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        """Build the links of the first ``num_ranks`` GPUs of ``cluster``.

        Raises:
            UserError: if the topology cannot be built on this cluster.
        """
        ...


Ports = tuple[list[int], list[int]]
"""Links out of each port, and into it, by their index."""


class Wiring:
    """Collector of links, which :meth:`freeze` makes a :class:`Fabric`."""

    def __init__(self, cluster: ClusterSpec, num_ranks: int) -> None:
        self.cluster = cluster
        self.num_ranks = num_ranks
        self.node = [rank // cluster.gpus_per_node for rank in range(num_ranks)]
        self._links: list[Link] = []

    def add_ports(
        self, kind: str, wire: LinkSpec, count: int, label: str = "gpu", width: float = 1.0
    ) -> Ports:
        """Add ``count`` pairs of links of one kind. ``width`` is the number of links in a
        bundle.
        """
        first = len(self._links)
        self._links += [
            Link(
                f"{label} {number} {kind} {direction}",
                kind,
                wire.bytes_per_s * width,
                wire.latency_s,
                number if label == "gpu" else -1,
            )
            for direction in ("out", "in")
            for number in range(count)
        ]
        return list(range(first, first + count)), list(range(first + count, first + 2 * count))

    def add_gpu_ports(self) -> tuple[Ports, Ports]:
        """Add each GPU's ports into its fast domain, and out of it where there are several; else
        the second ones are the first.
        """
        inside = self.add_ports("scale_up", self.cluster.scale_up, self.num_ranks)
        if not self.has_several_nodes:
            return inside, inside
        return inside, self.add_ports("scale_out", self.scale_out, self.num_ranks)

    @property
    def has_several_nodes(self) -> bool:
        """Whether the ranks lie in more than one fast domain."""
        return self.node[-1] > 0

    @property
    def scale_out(self) -> LinkSpec:
        """Link between domains; the cluster's own check makes it exist where there are several."""
        if self.cluster.scale_out is None:
            raise ValueError(f"cluster {self.cluster.name} has several nodes but no scale_out")
        return self.cluster.scale_out

    def freeze(
        self,
        find_path: Callable[[int, int], tuple[int, ...]],
        find_own_card: Callable[[int, int], tuple[int, ...]] | None = None,
    ) -> Fabric:
        """Make the fabric.

        Args:
            find_path: links that a message crosses from one rank to another.
            find_own_card: links of one that leaves by its sender's own card, where these differ.
        """
        path_SRH = self._list_paths(find_path)
        own_card_SRH = path_SRH if find_own_card is None else self._list_paths(find_own_card)
        is_same = np.array_equal(own_card_SRH, path_SRH)
        node_R = np.array(self.node, dtype=np.int64)
        return Fabric(tuple(self._links), path_SRH, node_R, None if is_same else own_card_SRH)

    def _list_paths(self, find_path: Callable[[int, int], tuple[int, ...]]) -> Ints:
        ranks = range(self.num_ranks)
        paths = {(s, r): find_path(s, r) for s in ranks for r in ranks if s != r}
        hops = max(map(len, paths.values()), default=1)
        path_SRH = np.full((self.num_ranks, self.num_ranks, hops), -1, dtype=np.int64)
        for (source, destination), links in paths.items():
            path_SRH[source, destination, : len(links)] = links
        return path_SRH
