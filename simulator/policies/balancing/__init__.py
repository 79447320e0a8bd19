"""Which replica gets a request. One policy a file.

A policy says its choice as numbers, which the engine's compiled loop follows; or it is an object of
the user's own, which is asked for each request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Rule(NamedTuple):
    """A choice as numbers: the replica with the least load, ties to the first; or one that was
    chosen before anything was known.
    """

    per_request: int = 0
    """Load of an unfinished request, whatever its length ..."""
    per_token: int = 0
    """... and of each of its prompt and output tokens."""
    turns: Callable[[int], NDArray[np.int64]] | None = None
    """Without regard to load: the replicas of so many requests, in the order in which they come."""


class LoadBalancer(Protocol):
    """A balancing policy of the user's own, made ready for one run."""

    def choose(self, outstanding: NDArray[np.int64], outstanding_tokens: NDArray[np.int64]) -> int:
        """Replica for the next request.

        Args:
            outstanding: requests that each replica has and has not finished.
            outstanding_tokens: prompt and output tokens of these.
        """
        ...


class BalancingPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    needs_load: bool
    """Whether the choice depends on the replicas' load."""

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule | LoadBalancer:
        """Start balancing over ``num_replicas``."""
        ...
