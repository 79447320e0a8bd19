"""When the experts of a deployment are placed anew while it serves, and where they go. One policy a
file.

A policy says when it is asked, and then from the load since the last time where experts are to lie;
the engine moves them. While the experts of a replica move, it forms no step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.policies.placement import Placed


class ExpertLoad(NamedTuple):
    """What a policy knows when it is asked."""

    at_s: float
    """Seconds since the first arrival."""
    num_tokens: int
    """Tokens that all replicas of the pool have computed since the policy was asked last."""
    load_LE: NDArray[np.float64]
    """How many of them are expected to have chosen each expert of each layer, ``[L, E]``."""
    placed: Placed
    """Where experts lie, the same in every replica."""


class RebalancingPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def looks(self) -> Iterator[float]:
        """When the policy is asked, in seconds since the first arrival, in order of time; it may go
        on for ever, since a run takes no more than it needs.
        """
        ...

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        """Where experts are to lie from now on, in as many slots as before; ``None`` to leave them.

        Args:
            rng: for policies that draw.
        """
        ...
