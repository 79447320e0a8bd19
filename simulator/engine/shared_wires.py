"""Wires that all traffic of a deployment shares, where ranks are simulated: steps, experts that
move beside them, and caches on their way from pool to pool.

Replicas that share no link have wires of their own, which take fewer events. With a prefill pool
caches join all replicas.
"""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import Event

from simulator.cost.comm import Exchange
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import Fidelity
from simulator.engine.fabric import FluidWires, Wires
from simulator.engine.joined_fabric import JoinedFabric, Located, join_fabric
from simulator.engine.loop_state import LoopState
from simulator.engine.message import MessageWires
from simulator.policies.topology import Fabric


class LocatedWires:
    """Wires of one replica, which lie among those of others."""

    def __init__(self, wires: Wires, located: Located) -> None:
        self._wires, self._located = wires, located

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange of the replica's ranks."""
        return self._wires.carry(self._located.place(exchange))

    def leave(self, wires: Wires) -> None:
        """Carry later exchanges, of a step that was cut off, on wires that nobody else uses."""
        self._wires = wires


class SharedWires:
    """Wires of the replicas of all pools."""

    def __init__(self, env: simpy.Environment, state: LoopState, fidelity: Fidelity) -> None:
        """Begin with idle wires."""
        self._env, self._is_fluid = env, fidelity == "rank"
        self._names = state.names
        self._fabrics = [pool.plan.placement.fabric for pool in state.pools]
        self.joined: JoinedFabric | None = None
        """Links of all replicas; ``None`` where these share none."""
        self.between: Wires | None = None
        """Wires between all GPUs, where caches travel from pool to pool."""
        self._make_of: dict[tuple[str, int], Callable[[Fabric], Wires]] = {}
        """Access to the wires of each replica that shares some, by its pool and number."""
        plan = state.plan
        if plan.transfer is not None or _may_share(plan):
            self._join(join_fabric(plan))
        self._wires = [
            [self._make(place, replica) for replica in range(pool.num_replicas)]
            for place, pool in enumerate(state.pools)
        ]

    def find(self, place: int, replica: int) -> Wires:
        """Find the wires of a replica of the pool at a place."""
        return self._wires[place][replica]

    def leave(self, place: int, replica: int) -> None:
        """Leave the wires of a replica to what is left of a step that was cut off; what begins
        later has others. Of shared ones, it ends its exchange under way only.
        """
        before = self._wires[place][replica]
        if isinstance(before, LocatedWires) and self.joined is not None:
            key = self._names[place], replica
            before.leave(self._make_apart(self.joined.located[key].fabric))
        self._wires[place][replica] = self._make(place, replica)

    def _join(self, joined: JoinedFabric) -> None:
        """Make the wires of each group of replicas that share links."""
        bridge = joined.between
        groups = joined.list_groups() if bridge is None else [set(joined.located)]
        for group in groups:
            if len(group) == 1:
                continue
            self.joined, make = joined, self._share(joined.fabric)
            self._make_of |= dict.fromkeys(group, make)
            if bridge is not None:
                self.between = make(bridge)

    def _share(self, fabric: Fabric) -> Callable[[Fabric], Wires]:
        """Make wires that several replicas have access to, each with paths of its own."""
        if self._is_fluid:
            fluid = FluidWires(self._env)
            return lambda _: fluid
        messages = MessageWires(self._env, fabric)
        return messages.share

    def _make(self, place: int, replica: int) -> Wires:
        key = self._names[place], replica
        if key not in self._make_of or self.joined is None:
            return self._make_apart(self._fabrics[place])
        located = self.joined.located[key]
        return LocatedWires(self._make_of[key](located.fabric), located)

    def _make_apart(self, fabric: Fabric) -> Wires:
        return FluidWires(self._env) if self._is_fluid else MessageWires(self._env, fabric)


def _may_share(plan: DeploymentPlan) -> bool:
    """Whether replicas may share wires: there are several, on a fabric with wires of several
    ranks.
    """
    return any(
        pool.serving.replicas > 1 and any(link.rank < 0 for link in pool.placement.fabric.links)
        for pool in plan.pools
    )
