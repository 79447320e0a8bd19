"""Share of GPU-time in which the GPUs of a deployment serve, from what happened to its replicas."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.deployment.plan import DeploymentPlan
from simulator.results.tables import ReplicasChanged

OF_FAILURES = ("num_lost", "availability")
"""Metrics that say something only where machines fail."""


def measure_availability(
    plan: DeploymentPlan, changes: Sequence[ReplicasChanged], duration_s: float
) -> float:
    """Measure the share of GPU-time that is not lost to failures: to GPUs that do not work, and to
    others of a replica that wait for them. NaN where nothing can fail.
    """
    if not plan.failures or duration_s <= 0:
        return float("nan")
    gpus_of = [pool.placement.layout.num_gpus for pool in plan.pools for _ in _replicas(pool)]
    # Each replica's GPUs that serve, and the time since which they do.
    serving = {replica: (0.0, gpus) for replica, gpus in enumerate(gpus_of)}
    served_gpu_s = 0.0
    for change in changes:
        for replica in change.replicas:
            since_s, gpus = serving[replica]
            at_s = min(change.at_s, duration_s)
            served_gpu_s += max(0.0, at_s - since_s) * gpus
            serving[replica] = (min(change.serves_s, duration_s), change.num_gpus)
    served_gpu_s += sum((duration_s - since_s) * gpus for since_s, gpus in serving.values())
    return served_gpu_s / duration_s / plan.num_gpus


def _replicas(pool: DeploymentPlan) -> range:
    return range(pool.serving.replicas)
