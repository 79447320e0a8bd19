"""Weibull gaps: for the same CV a heavier tail of long gaps than Gamma ones, and fewer very short
gaps.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, model_validator

from simulator.base.quantities import RequestRate
from simulator.workload.arrivals import OpenLoop
from simulator.workload.renewal import Cv, unit_gaps, weibull_shape


class Weibull(OpenLoop):
    """Independent Weibull gaps whose shape is solved from the CV."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"rate_per_s": 5.0, "cv": 2.0}, {"rate_per_s": 5.0, "cv": 0.5}]
        }
    )

    rate_per_s: RequestRate
    """Mean requests per second."""
    cv: Cv
    """Coefficient of variation of the gaps: standard deviation over mean."""

    @model_validator(mode="after")
    def _cv_is_reachable(self) -> Self:
        weibull_shape(self.cv)
        return self

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sorted arrival times in seconds, ``[num_requests]``."""
        return np.cumsum(unit_gaps("weibull", self.cv, num_requests, rng)) / self.rate_per_s
