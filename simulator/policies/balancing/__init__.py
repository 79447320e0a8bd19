"""Which replica gets a request. One policy a file."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LoadBalancer(Protocol):
    """A balancing policy made ready for one run."""

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
    """Whether ``choose`` looks at the replicas' load; if not, the engine need not bring every
    replica up to each arrival."""

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> LoadBalancer:
        """Start balancing over ``num_replicas``."""
        ...
