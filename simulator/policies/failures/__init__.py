"""What breaks while a deployment serves, and when it is back. One policy a file.

A policy says what happens to which replicas when, as data; the engine lets it happen. What a
replica had then goes to the others: requests keep the output tokens that were sent, their caches
are lost, and prompts and tokens are computed again where they go. With no replica left they are
lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np


class Machines(NamedTuple):
    """The GPUs of one pool of replicas, numbered replica after replica; nodes are filled in that
    order.
    """

    num_replicas: int
    gpus_per_replica: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.num_replicas * self.gpus_per_replica

    @property
    def num_nodes(self) -> int:
        """Nodes that these GPUs are on, the last of them perhaps in part."""
        return -(-self.num_gpus // self.gpus_per_node)

    def list_replicas(self, first_gpu: int, num_gpus: int) -> tuple[int, ...]:
        """Replicas that have a part on any of some GPUs.

        >>> Machines(num_replicas=3, gpus_per_replica=4, gpus_per_node=8).list_replicas(2, 4)
        (0, 1)
        """
        last_gpu = min(first_gpu + num_gpus, self.num_gpus) - 1
        size = self.gpus_per_replica
        return tuple(range(first_gpu // size, last_gpu // size + 1))


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
    """Whether they serve from now on, with empty caches; else they stop."""


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
