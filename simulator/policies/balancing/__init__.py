"""Load balancing of requests over replicas, one policy in a file.

A policy states its choice as numbers, which the engine's compiled loop follows; or it is an object
of the user's own, which is asked for each request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Rule(NamedTuple):
    """Choice as numbers: the replica with the least load, ties to the first; or a fixed order."""

    per_request: int = 0
    """Load of an unfinished request, whatever its length."""
    per_token: int = 0
    """Load of each prompt and output token of an unfinished request."""
    turns: Callable[[int], NDArray[np.int64]] | None = None
    """Function that returns the replicas of so many requests in order of arrival, without regard to
    load."""


class LoadBalancer(Protocol):
    """User's own balancing policy, prepared for one run."""

    def choose(self, outstanding: NDArray[np.int64], outstanding_tokens: NDArray[np.int64]) -> int:
        """Choose the replica for the next request.

        Args:
            outstanding: requests that each replica has and has not finished.
            outstanding_tokens: prompt and output tokens of these.
        """
        ...


class BalancingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    needs_load: bool
    """Whether the choice depends on the replicas' load."""

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule | LoadBalancer:
        """Start balancing over ``num_replicas``."""
        ...
