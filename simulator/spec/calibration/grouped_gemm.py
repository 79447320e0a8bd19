"""The products of the routed experts of a rank."""

from __future__ import annotations

from simulator.spec.base import NonNegative, Positive, Size
from simulator.spec.calibration.fit import Fit


class GroupedGemmFit(Fit):
    """A roofline with a floor: ``FLOPs / (peak x compute)`` against ``bytes / (peak x memory)``, plus ``floor_s``."""

    compute_fraction: Positive
    """Of the peak FLOP/s, for whole tiles."""
    memory_fraction: Positive
    """Of the peak memory rate."""
    floor_s: NonNegative
    """Shortest time of the kernel, launch included."""
    min_split_k: Size = 4096
    """A product with fewer tiles than multiprocessors is split along ``k`` into parts of at least this many."""
    quantise_bytes: NonNegative = 0.0
    """Moved for each number of the input to convert it to the weights' format, in a pass before the product."""
