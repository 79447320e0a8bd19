"""Topologies: the wires that join the GPUs, and the paths of messages; one topology in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.config.cluster import ClusterSpec
from simulator.policies.messages import Messages


class Link(NamedTuple):
    """One direction of one wire (or of a bundle of equal wires)."""

    name: str
    kind: str
    """Kind of the wire, as calibrations distinguish them: ``scale_up`` inside a fast domain,
    ``scale_out`` between domains."""
    bytes_per_s: float
    """Peak bytes per second."""
    latency_s: float
    """Seconds of latency."""
    rank: int = -1
    """Rank whose own port it is; -1 for wires that several ranks share."""


@dataclass(frozen=True)
class Fabric:
    """The links of one replica's ranks, and the path of every message."""

    links: tuple[Link, ...]
    path_SRH: NDArray[np.int64]
    """Indices into ``links`` of the hops from rank ``s`` to rank ``r``, padded with -1; all -1
    where ``s == r``."""
    node_R: NDArray[np.int64]
    """Fast domain of each rank."""
    own_card_SRH: NDArray[np.int64] | None = None
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

    def sum_by_link(self, sent: Messages) -> NDArray[np.float64]:
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
