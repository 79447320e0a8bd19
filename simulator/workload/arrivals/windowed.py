"""Traffic described window by window, as ServeGen does: each window has its own rate and
burstiness.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, model_validator

from simulator.base.frozen import SomeOf
from simulator.workload.arrivals import OpenLoop
from simulator.workload.arrivals._rate import FEWEST_REQUESTS, Window, check_windows
from simulator.workload.renewal import fill_window, weibull_shape


class Windowed(OpenLoop):
    """Windows one after the other, from the first again after the last (ServeGen, arXiv
    2505.09999).
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "windows": [
                        {"duration_s": 60.0, "rate_per_s": 4.0},
                        {"duration_s": 60.0, "rate_per_s": 8.0, "cv": 2.0, "pattern": "weibull"},
                    ]
                }
            ]
        }
    )

    windows: SomeOf[Window]
    """Windows one after the other, from the first again after the last."""

    @model_validator(mode="after")
    def _somebody_asks(self) -> Self:
        if self._requests_per_round < FEWEST_REQUESTS:
            raise ValueError(
                "windows: all together must have a request; raise a rate_per_s or a duration_s"
            )
        for window in self.windows:
            if window.pattern == "weibull":
                weibull_shape(window.cv)
        return self

    @property
    def _requests_per_round(self) -> float:
        """Mean requests of all windows together."""
        return sum(window.rate_per_s * window.duration_s for window in self.windows)

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sorted arrival times in seconds, ``[num_requests]``."""
        check_windows(num_requests, self._requests_per_round, len(self.windows))
        parts: list[NDArray[np.float64]] = [np.zeros(0)]
        start_s, found, index = 0.0, 0, 0
        while found < num_requests:
            window = self.windows[index % len(self.windows)]
            mean_requests = window.rate_per_s * window.duration_s
            if mean_requests:
                part = start_s + fill_window(
                    mean_requests, window.duration_s, window.pattern, window.cv, rng
                )
                parts.append(part)
                found += len(part)
            start_s += window.duration_s
            index += 1
        return np.concatenate(parts)[:num_requests]
