"""Wires that all traffic of a replica shares, where ranks are simulated: its steps, and experts
that move meanwhile.

Replicas share none with each other: each is priced as if it began with a node and a leaf switch,
where every topology gives its ranks ports and uplinks of their own.
"""

from __future__ import annotations

import simpy

from simulator.engine.by_ranks import Fidelity
from simulator.engine.fabric import FluidWires, Wires
from simulator.engine.loop_state import LoopState
from simulator.engine.message import MessageWires
from simulator.policies.topology import Fabric


class SharedWires:
    """Wires of the replicas of all pools."""

    def __init__(self, env: simpy.Environment, state: LoopState, fidelity: Fidelity) -> None:
        """Begin with idle wires."""
        self._env, self._is_fluid = env, fidelity == "rank"
        self._fabrics = [pool.plan.placement.fabric for pool in state.pools]
        self._wires = [
            [self._make(fabric) for _ in range(pool.num_replicas)]
            for pool, fabric in zip(state.pools, self._fabrics, strict=True)
        ]

    def find(self, place: int, replica: int) -> Wires:
        """Find the wires of a replica of the pool at a place."""
        return self._wires[place][replica]

    def leave(self, place: int, replica: int) -> None:
        """Leave the wires of a replica to what is left of a step that was cut off; what begins
        later has others.
        """
        self._wires[place][replica] = self._make(self._fabrics[place])

    def _make(self, fabric: Fabric) -> Wires:
        return FluidWires(self._env) if self._is_fluid else MessageWires(self._env, fabric)
