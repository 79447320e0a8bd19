"""Which wires join the GPUs, and which of them a message crosses. One topology a file."""

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
    """``scale_up`` inside a fast domain, ``scale_out`` between domains: what calibration speaks
    of."""
    bytes_per_s: float
    """Peak."""
    latency_s: float


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
    """Likewise for messages that GPUs hand to their own cards, where the topology's paths leave by
    other ones."""

    @cached_property
    def direct(self) -> Fabric:
        """The same wires for kernels that post to the GPU's own card, whatever the library for
        collectives does.
        """
        return (
            self
            if self.own_card_SRH is None
            else replace(self, path_SRH=self.own_card_SRH, own_card_SRH=None)
        )

    @property
    def num_ranks(self) -> int:
        """``R``."""
        return len(self.node_R)

    @property
    def num_nodes(self) -> int:
        """``N``, fast domains that the ranks lie in."""
        return len(np.unique(self.node_R))

    def sum_by_link(self, sent: Messages) -> NDArray[np.float64]:
        """What crosses each link, ``[links]``, in what the messages are counted in."""
        return sent.sum_by_link(self.path_SRH, len(self.links))


class TopologyPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def wire(self, cluster: ClusterSpec, num_ranks: int) -> Fabric:
        """Join the first ``num_ranks`` GPUs of ``cluster``.

        Raises:
            UserError: if the topology cannot be built on this cluster.
        """
        ...
