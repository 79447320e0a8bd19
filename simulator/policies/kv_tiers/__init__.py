"""Memory below a GPU's own that prefix blocks of the KV cache are kept in, one kind in a file.

What happens there is the engine's business (:mod:`simulator.engine.cache`): every prompt's blocks
are written to all tiers, each evicts the least recently used, and a prompt that begins with blocks
that the GPU no longer has reads them while it waits.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simulator.config.cluster import ClusterSpec


class Tier(NamedTuple):
    """Memory of one GPU's part of a cache, and its link; each direction has its own."""

    memory_bytes: float
    """Bytes for KV blocks."""
    read_bytes_per_s: float
    """Rate towards the GPU, bytes per second."""
    write_bytes_per_s: float
    """Rate from the GPU, bytes per second."""
    latency_s: float = 0.0
    """Seconds until the first byte of a prompt's blocks arrives."""


class TierPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def tier(self, cluster: ClusterSpec) -> Tier:
        """Describe the memory that each GPU of a cluster has.

        Raises:
            UserError: if the cluster's file lacks what it needs.
        """
        ...
