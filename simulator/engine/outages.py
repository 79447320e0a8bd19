"""GPUs of a pool that are out of work, and the ranks that are lost with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.plan import DeploymentPlan
from simulator.policies.failures import Change


class Outages:
    """Count of reasons for which each GPU of a pool is out of work."""

    def __init__(self, plan: DeploymentPlan) -> None:
        layout = plan.placement.layout
        self._size, self._layout = layout.num_gpus, layout
        self._reasons_MG = np.zeros((plan.serving.replicas, layout.num_gpus), dtype=np.int64)

    def apply(self, change: Change) -> None:
        """Add a reason for each of a change's GPUs, or take one away where there is one."""
        step = -1 if change.starts else 1
        for replica in change.replicas:
            gpus = self.list_gpus(change, replica)
            self._reasons_MG[replica, gpus] = np.maximum(self._reasons_MG[replica, gpus] + step, 0)

    def list_gpus(self, change: Change, replica: int) -> NDArray[np.int64]:
        """List the GPUs of one of a change's replicas, numbered from the replica's first."""
        own = [gpu % self._size for gpu in change.gpus if gpu // self._size == replica]
        return np.array(own, dtype=np.int64) if change.gpus else np.arange(self._size)

    def find_groups(self, gpus: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the data-parallel groups of GPUs, numbered from their replica's first."""
        return gpus % self._layout.num_ranks // self._layout.tp

    def find_lost(self, replica: int) -> NDArray[np.bool_]:
        """Find the data-parallel groups of a replica that have lost a GPU, ``[D]``."""
        lost_D = np.zeros(self._layout.attention_dp, dtype=np.bool_)
        lost_D[self.find_groups(np.flatnonzero(self._reasons_MG[replica]))] = True
        return lost_D
