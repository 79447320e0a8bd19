"""Factors on the speed of a machine's parts and of the engine, to see what faster ones would do."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor


class Speeds(Frozen):
    """Factors on the speed of each part, beside ``network_speed`` for the wires; all twice as fast,
    a step takes half.
    """

    memory: Factor = 1.0
    """Factor on the rate of the GPUs' memory."""
    arithmetic: Factor = 1.0
    """Factor on the GPUs' peak rates of matrix products, in all number formats."""
    kernels: Factor = 1.0
    """Factor on the speed of what kernels do beside reading memory and multiplying: launches,
    starts of tiles, exponentials, and the copies of those that exchange tokens."""
    latency: Factor = 1.0
    """Factor by which latencies of exchanges and wires are shorter."""
    engine: Factor = 1.0
    """Factor on the speed of the engine's own work: between forward passes, and before first
    tokens."""
    below: Factor = 1.0
    """Factor on the speed of what lies below the GPUs' memory: main memory, storage, the wires to
    the GPUs, and the processor."""
