"""Traffic with a rate that wanders on several time-scales, as production traffic does (a doubly
stochastic process).
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, model_validator

from simulator.base.frozen import ListOf, SomeOf
from simulator.base.quantities import Duration, Factor, RequestRate
from simulator.workload.arrivals import OpenLoop
from simulator.workload.arrivals._rate import FEWEST_REQUESTS, Pauses, Swing, check_windows
from simulator.workload.renewal import Cv, fill_window

_CELLS_PER_SCALE = 8
"""Steps of the wandering rate within the shortest time-scale."""
_MAX_CELLS = 5_000_000
"""Most steps of the rate in a span: 40 MB an array, and a second of drawing."""


class Modulated(OpenLoop):
    """A Gamma renewal process run by a clock that speeds up and slows down with the rate.

    A span of ``span_s`` seconds is cut into as many equal parts as ``profile`` has entries (one
    without a profile), and spans repeat. Each part gets its share of the requests whatever the
    seed; ``swings`` and ``pauses`` move them about within their part. So the mean rate and the
    profile are kept exactly, and what is random is burstiness at scales shorter than a part. In
    windows of ``w`` seconds the variance over mean of the number of requests is about ``cv^2 +
    rate_per_s * w * variance(w)``, where ``variance(w)`` is that of the relative rate averaged over
    such windows.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rate_per_s": 5.0,
                    "span_s": 600.0,
                    "profile": [1.0, 2.0],
                    "swings": [{"std": 0.3, "time_s": 5.0}],
                },
                {"rate_per_s": 5.0, "span_s": 600.0, "pauses": {"share": 0.5, "mean_s": 20.0}},
            ]
        }
    )

    rate_per_s: RequestRate
    """Mean requests per second."""
    cv: Cv = 1.0
    """Coefficient of variation of the gaps while the rate stands still."""
    span_s: Duration
    """Seconds over which the mean rate is kept."""
    profile: SomeOf[Factor] = (1.0,)
    """Ratio of the rate to its mean in equal parts of the span; only the ratios matter."""
    swings: ListOf[Swing] = ()
    """Random multipliers of the rate."""
    pauses: Pauses | None = None
    """Random silences."""

    @model_validator(mode="after")
    def _is_feasible(self) -> Self:
        if self.rate_per_s * self.span_s < FEWEST_REQUESTS:
            raise ValueError(
                f"span_s ({self.span_s}) is too short for a request at rate_per_s "
                f"({self.rate_per_s})"
            )
        if self._cells_per_part() * len(self.profile) > _MAX_CELLS:
            raise ValueError(
                f"span_s ({self.span_s}) is too long for the shortest swing or pause; "
                "keep the ratio below 500000"
            )
        return self

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sorted arrival times in seconds, ``[num_requests]``."""
        num_parts = len(self.profile)
        check_windows(num_requests, self.rate_per_s * self.span_s, num_parts)
        part_s = self.span_s / num_parts
        per_part = self.rate_per_s * self.span_s * np.array(self.profile) / sum(self.profile)
        cells = np.arange(self._cells_per_part() + 1) / self._cells_per_part()
        times: list[NDArray[np.float64]] = [np.zeros(0)]
        span = found = 0
        while found < num_requests:
            shapes = self._relative_rate(rng).reshape(num_parts, -1)
            for part, (mean_requests, relative) in enumerate(zip(per_part, shapes, strict=True)):
                start_s, end_s = (
                    self.span_s * (span + place / num_parts) for place in (part, part + 1)
                )
                expected = np.concatenate(([0.0], np.cumsum(relative)))
                share = (
                    expected / expected[-1] if expected[-1] > 0 else cells
                )  # a part without activity has no shape to follow
                arrived = fill_window(float(mean_requests), 1.0, "gamma", self.cv, rng)
                # Never at the part's very end, which is the beginning of the next.
                times.append(
                    np.minimum(
                        start_s + part_s * np.interp(arrived, share, cells),
                        np.nextafter(end_s, start_s),
                    )
                )
                found += len(arrived)
            span += 1
        return np.concatenate(times)[:num_requests]

    def _cells_per_part(self) -> int:
        part_s = self.span_s / len(self.profile)
        scales_s = [swing.time_s for swing in self.swings] + (
            [self.pauses.mean_s] if self.pauses else []
        )
        return math.ceil(_CELLS_PER_SCALE * part_s / min([part_s, *scales_s]))

    def _relative_rate(self, rng: np.random.Generator) -> NDArray[np.float64]:
        num_cells = self._cells_per_part() * len(self.profile)
        relative = np.ones(num_cells)
        multipliers: list[Swing | Pauses] = [*self.swings, *([self.pauses] if self.pauses else [])]
        for multiplier in multipliers:
            relative = relative * multiplier.multipliers(num_cells, self.span_s / num_cells, rng)
        return relative
