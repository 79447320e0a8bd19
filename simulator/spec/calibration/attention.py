"""Attention over the context."""

from __future__ import annotations

from simulator.spec.base import NonNegative, Positive
from simulator.spec.calibration.fit import Fit


class AttentionFit(Fit):
    """A roofline with a floor: ``FLOPs / (peak x compute)`` against ``bytes / (peak x memory)``, plus ``floor_s``."""

    compute_fraction: Positive
    """Of the peak FLOP/s."""
    memory_fraction: Positive
    """Of the peak memory rate."""
    floor_s: NonNegative
    """Shortest time of the kernel, launch included."""
