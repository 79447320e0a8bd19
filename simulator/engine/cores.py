"""CPU cores that ranks share, where a machine has fewer cores than ranks."""

from __future__ import annotations

import numpy as np
import simpy
from simpy.events import Event

from simulator.cost.comm import Exchange
from simulator.engine.fabric import FluidWires
from simulator.policies.messages import Messages


class SharedCores:
    """Even sharing of cores by the ranks that compute, none getting more than one, as an operating
    system's scheduler approximates.

    Computing is a fluid like an exchange: it crosses the rank's own core and the pool of all cores.
    """

    def __init__(self, env: simpy.Environment, num_ranks: int, num_cores: int) -> None:
        self._wires = FluidWires(env)
        self._num_ranks, self._num_cores = num_ranks, num_cores

    def work(self, rank: int, seconds: float) -> Event:
        """Compute for a rank what takes ``seconds`` on a core of its own."""
        busy_s = np.zeros(self._num_ranks + 1)
        busy_s[rank] = seconds
        busy_s[-1] = seconds / self._num_cores
        return self._wires.carry(Exchange(0.0, busy_s, Messages.empty()))
