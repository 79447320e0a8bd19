"""Rates of failures that the spare machines of a plan are weighed by."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Hours


class FailureRates(Frozen):
    """Rates at which GPUs fail, and the time until others serve in their place.

    Published rates differ by six (:class:`simulator.policies.failures.random.Random`), so there are
    two.
    """

    mtbf_gpu_hours_low: Hours = 8_100.0
    """Mean hours that a GPU works between two failures, at worst: 1,024 A100 interrupted every
    7.9 h (arXiv:2410.21680)."""
    mtbf_gpu_hours_high: Hours = 50_700.0
    """Mean hours that a GPU works between two failures, at best: 419 interruptions in 54 days of
    16,384 H100 (arXiv:2407.21783)."""
    repair_hours: Hours = 1.0
    """Hours until another machine serves in its place; assumed, where spare ones are to be had."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.mtbf_gpu_hours_low > self.mtbf_gpu_hours_high:
            raise ValueError(
                f"mtbf_gpu_hours_low ({self.mtbf_gpu_hours_low:g}) must be at most "
                f"mtbf_gpu_hours_high ({self.mtbf_gpu_hours_high:g})"
            )
        return self
