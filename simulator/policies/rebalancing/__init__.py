"""Rebalancing of experts during a run, one policy in a file.

A policy states when it is asked, and then decides from the load since the last time where experts
shall lie; the engine moves them. While the experts of a replica move, it forms no step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.policies.placement import Placed


class ExpertLoad(NamedTuple):
    """Load of experts since the policy was asked last."""

    at_s: float
    """Seconds since the first arrival."""
    num_tokens: int
    """Tokens that all replicas of the pool have computed since the policy was asked last."""
    load_LE: NDArray[np.float64]
    """Expected number of tokens that have chosen each expert of each layer, ``[L, E]``."""
    placed: Placed
    """Current placement of experts, the same in every replica."""


class RebalancingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def looks(self) -> Iterator[float]:
        """Yield the times at which the policy is asked, in seconds since the first arrival, in
        order, possibly without end: a run takes no more than it needs.
        """
        ...

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        """Decide the placement of experts, in as many slots as before; ``None`` to leave them.

        Args:
            rng: for policies that draw.
        """
        ...
