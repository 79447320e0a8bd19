"""Gamma gaps: burstier (CV above 1) or more even (below 1) than Poisson, at a constant rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from simulator.base.quantities import RequestRate
from simulator.workload.arrivals import OpenLoop
from simulator.workload.renewal import Cv, unit_gaps


class Gamma(OpenLoop):
    """Independent Gamma gaps of shape ``1 / cv^2``. vLLM's ``--burstiness`` is that shape."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"rate_per_s": 5.0, "cv": 2.0}, {"rate_per_s": 5.0, "cv": 0.5}]
        }
    )

    rate_per_s: RequestRate
    """Mean requests per second."""
    cv: Cv
    """Coefficient of variation of the gaps: standard deviation over mean."""

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sorted arrival times in seconds, ``[num_requests]``."""
        return np.cumsum(unit_gaps("gamma", self.cv, num_requests, rng)) / self.rate_per_s
