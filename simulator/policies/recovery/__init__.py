"""Recovery of a replica from lost GPUs, one policy in a file: what a serving engine does when GPUs
fail, and when they work again.

A failed GPU stops its replica at once, for every step needs all ranks. ``detection_s`` later the
failure is noticed, and the policy is asked to shrink the replica to the ranks that are left; where
it does not, the replica is gone until its GPUs work again and it has started anew.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from simulator.base.arrays import Bools, Floats
from simulator.policies.placement import Placed

Requests = Literal["resume", "retry", "lose"]
"""Fate of requests whose caches are lost: they keep the output tokens that were sent, and prompts
and tokens are computed again elsewhere (``resume``); they begin anew (``retry``); or the client
gets an error and nothing more (``lose``)."""


class Loss(NamedTuple):
    """Replica that has lost GPUs."""

    lost_D: Bools
    """Whether each data-parallel group that served before has lost a GPU, ``[D]``; at least one has
    not."""
    placed: Placed
    """Placement of experts on their ranks, those of group ``d`` being ``d tp`` to ``(d + 1) tp``:
    what an earlier loss has left, or where ranks join again, that of the whole replica."""
    load_LE: Floats
    """Expected load of each expert, ``[L, E]``, in any unit."""


class RecoveryPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    @property
    def detection_s(self) -> float:
        """Seconds until a failure is noticed."""
        ...

    @property
    def startup_s(self) -> float:
        """Seconds from the moment at which GPUs work again until they serve."""
        ...

    @property
    def requests(self) -> Requests:
        """Fate of requests whose caches are lost."""
        ...

    def shrink(self, loss: Loss) -> Placed | None:
        """Place the experts on the ranks that are left, numbered anew in their order; ``None``
        where the replica cannot go on without the others.

        Slots that stay in their rank and keep their expert cost nothing; others are loaded.
        """
        ...

    def interrupt_s(self, loaded_bytes: float) -> float:
        """Seconds for which a replica forms no step when ranks are left out or join: the time of a
        new group, in which one rank loads ``loaded_bytes`` of experts and no other loads more.
        """
        ...
