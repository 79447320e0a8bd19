"""Shards on the nodes of a Ray cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.config.execution import ExecutionSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.runtime.backend import Backend
from simulator.runtime.nodes import Nodes
from simulator.runtime.ray_backend import RayBackend


class RaySite:
    """Nodes of a Ray cluster, where shards run."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        count = len(nodes.alive)
        self.description = f"{count} {'simulated nodes' if nodes.simulated else 'node(s)'}"

    def start(self, node_R: NDArray[np.int64], execution: ExecutionSpec) -> RayBackend:
        """Start actors on the nodes of their ranks."""
        return RayBackend(self._nodes, self._nodes.spread(node_R), execution)

    def fits(self, backend: Backend, plan: DeploymentPlan) -> bool:
        """Whether a backend's actors are where the plan places them, and no fault is planned for
        them.
        """
        assert isinstance(backend, RayBackend)
        wanted = self._nodes.spread(plan.placement.fabric.node_R)
        return list(backend.node_R) == list(wanted) and not backend.has_planned_faults
