"""Headroom: how much more traffic a deployment carries at the size that it has."""

from __future__ import annotations

import math
from dataclasses import replace

from simulator.planner.explore import ClusterSize, Explorer

FURTHEST = 8.0
"""Times the traffic beyond which nobody asks, and one over it."""
_STEP = 1.02
_COARSE = 1.25


def headroom(explorer: Explorer, cluster_size: ClusterSize | None, step: float = _STEP) -> float:
    """Times the traffic that the replicas still carry with all targets met; up to 8, and 0 below an
    eighth.

    Requests come so much faster, and again and again, so that they last as long as before.

    Args:
        step: ratio between what is still carried and what is not any more.
    """
    if cluster_size is None:
        return 0.0

    def met(factor: float) -> bool:
        return (
            replace(explorer, traffic=explorer.traffic.at_rate(factor), _known={})
            .trial(cluster_size)
            .met
        )

    low = 1.0
    if met(low):
        while low < FURTHEST and met(min(low * _COARSE, FURTHEST)):
            low = min(low * _COARSE, FURTHEST)
        if low >= FURTHEST:
            return FURTHEST
    else:
        low /= _COARSE
        while not met(low):
            low /= _COARSE
            if low < 1 / FURTHEST:
                return 0.0
    high = low * _COARSE
    while high / low > step:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if met(middle) else (low, middle)
    return low
