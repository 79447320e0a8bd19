"""What breaks while a deployment serves, and when it is back. One policy a file.

Changes of one instant happen together, behind everything else of that instant.

A policy says what happens to which replicas when, as data; the engine lets it happen. What a
replica had then goes to the others: requests keep the output tokens that were sent, their caches
are lost, and prompts and tokens are computed again where they go. With no replica there they are
lost; a client of a closed loop then sends its next request at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np


class Machines(NamedTuple):
    """The GPUs of one pool of replicas, numbered replica after replica; the nodes of a cluster are
    filled in that order, by the deployment's own pool first.
    """

    num_replicas: int
    gpus_per_replica: int
    gpus_per_node: int
    cluster: str = ""
    """Whose nodes they are on."""
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
    """What happens to some replicas of a pool at one instant, behind everything else that happens
    at it.
    """

    at_s: float
    """Seconds since the first arrival."""
    pool: str
    """``both``, or ``prefill`` and ``decode`` where these are pools of their own."""
    replicas: tuple[int, ...]
    """By number in their pool."""
    starts: bool
    """Whether one reason for them to stop is gone, else there is one more. With none left they
    serve, with empty caches."""


class FailurePolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def changes(
        self, machines: Mapping[str, Machines], rng: np.random.Generator
    ) -> Iterator[Change]:
        """What happens, in order of time; it may go on for ever, since a run takes no more than it
        needs.

        Args:
            machines: by the name of each pool.

        Raises:
            UserError: if the configuration names a GPU or node that is not there.
        """
        ...
