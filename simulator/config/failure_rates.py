"""Rates of failures that the spare machines of a plan are weighed by."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Hours, Nodes, Ratio, Share


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
    node_share: Ratio = 0.0
    """Share of failures that take a whole node, with every replica that has GPUs on it."""
    switch_share: Ratio = 0.0
    """Share of failures that take all nodes under a switch; in Llama 3's training 35 of 419
    interruptions were of network switches or cables (arXiv:2407.21783, table 5)."""
    nodes_per_switch: Nodes = 4
    """Nodes under one switch."""
    availability: Share | None = None
    """Share of the time for which at least as many replicas serve as keep the targets, at
    ``mtbf_gpu_hours_low``, such as 0.999: spare replicas are deployed for it (N+k). Absent =
    none."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.mtbf_gpu_hours_low > self.mtbf_gpu_hours_high:
            raise ValueError(
                f"mtbf_gpu_hours_low ({self.mtbf_gpu_hours_low:g}) must be at most "
                f"mtbf_gpu_hours_high ({self.mtbf_gpu_hours_high:g})"
            )
        if self.node_share + self.switch_share > 1:
            raise ValueError(
                f"node_share ({self.node_share:g}) and switch_share ({self.switch_share:g}) are "
                "shares of the same failures; they must add up to at most 1"
            )
        if self.availability == 1:
            raise ValueError("availability must be below 1; no number of spare replicas reaches it")
        return self
