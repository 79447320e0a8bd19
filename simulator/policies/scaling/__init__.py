"""Scaling of the number of replicas during a run, one policy in a file.

A policy states when it is asked, and then decides from the load how many replicas shall serve. The
engine launches those that are missing, which serve ``startup_s`` later; where there are too many,
those that do not serve yet leave at once, and others drain: they get no new requests, finish those
that they have, and leave. The unit is a whole replica, such as an expert-parallel group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

STARTUP_S = 150.0
"""Seconds of a start of a replica with its process, weights and graphs. Published for DeepSeek-V3.2
on 32 GPUs: two to three minutes (LMSYS, "Elastic EP in SGLang", March 2026)."""


class PoolLoad(NamedTuple):
    """Load of a deployment's replicas at one instant, behind everything else of that instant but
    failures.
    """

    at_s: float
    """Seconds since the first arrival."""
    replicas: int
    """Number of replicas that the policy has decided on last."""
    num_serving: int
    """Replicas that get requests."""
    num_starting: int
    """Replicas that were launched and do not serve yet."""
    num_requests: int
    """Requests that the serving replicas have and have not finished, queued ones among them."""
    num_tokens: int
    """Prompt and output tokens of these requests."""


class ScalingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    @property
    def startup_s(self) -> float:
        """Seconds from the launch of a replica until it serves."""
        ...

    @property
    def replaces_failed(self) -> bool:
        """Whether another replica is launched for one that has stopped, if GPUs are free."""
        ...

    def begin(self, most: int) -> int:
        """Choose the number of replicas that serve when the run begins.

        Args:
            most: replicas that there can be.
        """
        ...

    def looks(self) -> Iterator[float]:
        """Yield the times at which the policy is asked, in seconds since the first arrival, in
        order, possibly without end: a run takes no more than it needs.
        """
        ...

    def decide(self, loads: Sequence[PoolLoad], most: int) -> int:
        """Decide how many replicas shall serve.

        Args:
            loads: load at each time so far at which the policy was asked, now last.
            most: replicas that there can be.
        """
        ...
