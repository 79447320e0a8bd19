"""A fixed number of users: each sends the next request when the last one is answered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from simulator.base.frozen import Frozen
from simulator.base.quantities import Requests


class ClosedLoop(Frozen):
    """Requests are taken in order, at most ``concurrency`` in flight; how fast they arrive depends
    on the server.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"concurrency": 16}]})

    concurrency: Requests
    """Requests kept in flight."""

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Zeros, ``[num_requests]``: every request is ready from the start and waits for its
        turn.
        """
        return np.zeros(num_requests)
