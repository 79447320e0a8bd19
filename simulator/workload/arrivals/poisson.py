"""Requests that arrive independently of each other, at a constant rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from simulator.base.quantities import RequestRate
from simulator.workload.arrivals import OpenLoop


class Poisson(OpenLoop):
    """Exponential gaps: CV 1, and a variance-to-mean ratio (Fano factor) of 1 in windows of any
    length.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"rate_per_s": 5.0}]})

    rate_per_s: RequestRate
    """Mean requests per second."""

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sorted arrival times in seconds, ``[num_requests]``."""
        return np.cumsum(rng.exponential(1 / self.rate_per_s, num_requests))
