"""A fixed number of users: each sends the next request when the last one is answered."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from simulator.base.frozen import Frozen
from simulator.base.quantities import Requests, Seconds


class ClosedLoop(Frozen):
    """Requests are taken in order, at most ``concurrency`` in flight; how fast they arrive depends
    on the server. From three rounds on the first one, in which the load builds up, is not judged.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"concurrency": 16}, {"concurrency": 64, "start": "spread"}]
        }
    )

    concurrency: Requests
    """Requests kept in flight."""
    start: Literal["at_once", "spread"] = "at_once"
    """Times at which clients send their first requests: all at the beginning, as benchmarks do,
    or evenly over the mean stay of these when they come at once."""
    send_s: Seconds = 0.00012
    """Seconds between two requests that the clients' one process has to send, so that those of
    streams which end together do not come together. By default the median of an aiohttp 3.14
    client's on one core, with prompts of 1,000 words."""
    judge_ramp: bool = False
    """Judge the first round too, as clients of benchmarks report it."""

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Zeros, ``[num_requests]``: every request is ready from the start and waits for its
        turn.
        """
        return np.zeros(num_requests)
