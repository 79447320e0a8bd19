"""Load balancing of requests over replicas, one policy in a file.

A policy states its choice as numbers, weights over what a router sees, which the engine's compiled
loop follows; or it is an object, which is asked for each request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from simulator.base.arrays import Ints


class Rule(NamedTuple):
    """Choice as numbers: the replica with the least load, ties to the first; or a fixed order.

    Where prefixes count, the data-parallel rank of a replica is chosen so as well, and a replica is
    as good as its best rank; otherwise the engine's release chooses the rank.
    """

    per_request: float = 0
    """Load of an unfinished request, whatever its length."""
    per_token: float = 0
    """Load of each prompt and output token of an unfinished request."""
    per_new_token: float = 0
    """Load of each token of the request's prompt that is not cached there."""
    turns: Callable[[int], Ints] | None = None
    """Function that returns the replicas of so many requests in order of arrival, without regard to
    load."""


class Asked(NamedTuple):
    """Request for which a replica is chosen."""

    number: int
    """Number in the trace."""
    arrival_s: float
    """Arrival at the scheduler, seconds."""
    num_input: int
    """Prompt tokens."""
    num_output: int
    """Output tokens, which no router knows beforehand."""
    prefix_ids: Ints
    """Ids of the prompt's prefix blocks, from its beginning: equal blocks have equal ids."""
    attributes: Mapping[str, float | str]
    """Values of the trace's further columns by name, such as ``session``: numbers, or texts."""


class Snapshot(NamedTuple):
    """State of all replicas that get requests, an entry for each."""

    outstanding: Ints
    """Requests that the replica has and has not finished."""
    outstanding_tokens: Ints
    """Prompt and output tokens of these."""
    free_blocks: Ints
    """KV blocks that no request holds, of all its ranks."""
    cached_tokens: Ints
    """Tokens of the longest prefix of the request's prompt that one of its ranks has cached, in
    any tier."""


class LoadBalancer(Protocol):
    """Balancing policy that is asked, prepared for one run."""

    def choose(self, request: Asked, snapshot: Snapshot) -> int:
        """Choose the replica for a request: its place in the snapshot."""
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
