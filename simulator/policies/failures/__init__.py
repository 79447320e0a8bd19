"""Failures and recoveries during a run, one policy in a file.

Changes at one instant happen together, behind everything else of that instant.

A policy states as data which replicas stop or start when; the engine applies it. The requests of a
stopped replica go to the others: they keep the output tokens that were sent, their caches are lost,
and prompts and tokens are computed again where they go. With no replica left they are lost; a
client of a closed loop then sends its next request at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np


class Machines(NamedTuple):
    """GPUs of one pool of replicas, numbered replica after replica; the nodes of a cluster are
    filled in that order, by the deployment's own pool first.
    """

    num_replicas: int
    gpus_per_replica: int
    gpus_per_node: int
    cluster: str = ""
    """Cluster whose nodes they are on."""
    first_gpu: int = 0
    """GPUs of the cluster that another pool has before them."""

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.num_replicas * self.gpus_per_replica

    @property
    def num_nodes(self) -> int:
        """Nodes of the cluster up to the last of these GPUs."""
        return -(-(self.first_gpu + self.num_gpus) // self.gpus_per_node)

    def list_replicas(self, node: int) -> tuple[int, ...]:
        """Replicas that have a part on a node of the cluster.

        >>> Machines(num_replicas=3, gpus_per_replica=4, gpus_per_node=6).list_replicas(1)
        (1, 2)
        """
        begin = node * self.gpus_per_node - self.first_gpu
        first, end = max(begin, 0), min(begin + self.gpus_per_node, self.num_gpus)
        size = self.gpus_per_replica
        return tuple(range(first // size, (end - 1) // size + 1)) if end > first else ()


class Change(NamedTuple):
    """Stop or start of some replicas of a pool at one instant, behind everything else at it."""

    at_s: float
    """Seconds since the first arrival."""
    pool: str
    """``both``, or ``prefill`` and ``decode`` where these are pools of their own."""
    replicas: tuple[int, ...]
    """Numbers of the replicas in their pool."""
    starts: bool
    """Whether one reason for them to stop is gone; otherwise there is one more. With none left they
    serve, with empty caches."""


class FailurePolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def changes(
        self, machines: Mapping[str, Machines], rng: np.random.Generator
    ) -> Iterator[Change]:
        """Yield stops and starts, in order of time, possibly without end: a run takes no more than
        it needs.

        Args:
            machines: by the name of each pool.

        Raises:
            UserError: if the configuration names a GPU or node that is not there.
        """
        ...
