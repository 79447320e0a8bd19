"""Failures and recoveries during a run, one policy in a file.

Changes at one instant happen together, behind everything else of that instant.

A policy states as data which GPUs fail and work again when; the engine applies it, and the
deployment's recovery policy (:mod:`simulator.policies.recovery`) says what a serving engine does
then. With no replica left requests are lost; a client of a closed loop then sends its next request
at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

    def list_gpus(self, node: int) -> tuple[int, ...]:
        """GPUs of the pool on a node of the cluster, numbered from the pool's first.

        >>> Machines(num_replicas=3, gpus_per_replica=4, gpus_per_node=6).list_gpus(1)
        (6, 7, 8, 9, 10, 11)
        """
        begin = node * self.gpus_per_node - self.first_gpu
        return tuple(range(max(begin, 0), min(begin + self.gpus_per_node, self.num_gpus)))

    def find_replicas(self, gpus: Iterable[int]) -> tuple[int, ...]:
        """Replicas that some GPUs of the pool belong to.

        >>> Machines(num_replicas=3, gpus_per_replica=4, gpus_per_node=6).find_replicas([7, 8])
        (1, 2)
        """
        return tuple(sorted({gpu // self.gpus_per_replica for gpu in gpus}))


class Change(NamedTuple):
    """Failure or repair of some GPUs of a pool at one instant, behind everything else at it."""

    at_s: float
    """Seconds since the first arrival."""
    pool: str
    """``both``, or ``prefill`` and ``decode`` where these are pools of their own."""
    replicas: tuple[int, ...]
    """Numbers of the GPUs' replicas in their pool."""
    starts: bool
    """Whether one reason for the GPUs to be out of work is gone; otherwise there is one more. With
    none left they work."""
    gpus: tuple[int, ...] = ()
    """GPUs, numbered from the pool's first; empty for all GPUs of the replicas."""
    is_notice: bool = False
    """Whether a failure is announced only: the replicas get no more requests until it is there."""


class FailurePolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def changes(
        self, machines: Mapping[str, Machines], rng: np.random.Generator
    ) -> Iterator[Change]:
        """Yield failures and repairs, in order of time, possibly without end: a run takes no more
        than it needs.

        Args:
            machines: by the name of each pool.

        Raises:
            UserError: if the configuration names a GPU or node that is not there.
        """
        ...
