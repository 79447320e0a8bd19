"""GPU-time of a deployment from what happened to its replicas: what is held and paid for, and the
share of it in which GPUs serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from simulator.deployment.plan import DeploymentPlan
from simulator.results.tables import ReplicasChanged

OF_CHANGES = ("num_lost", "num_refused", "availability", "gpus_held")
"""Metrics that say something only where machines fail, replicas come and go, or prompts are
longer than the engine takes."""


def list_told(table: pd.DataFrame) -> list[str]:
    """List those of :data:`OF_CHANGES` that say something in rows of ``summary.csv``."""
    says = {name: name in table and bool(table[name].any()) for name in OF_CHANGES}
    if says["gpus_held"]:
        says["gpus_held"] = bool((table["gpus_held"] != table["num_gpus"]).any())
    return [name for name in OF_CHANGES if says[name]]


def measure_held(
    plan: DeploymentPlan, changes: Sequence[ReplicasChanged], until_s: float, from_s: float = 0.0
) -> list[float]:
    """Measure the GPUs that each pool holds, mean over the time from ``from_s`` to ``until_s``, in
    the order of ``plan.pools``: those of a replica from its launch until it has left, of all
    replicas without scaling; and those that are idle.
    """
    return [
        pool.spec.idle_gpus
        + pool.placement.layout.num_gpus
        * sum(
            (max(end_s, from_s) - max(begin_s, from_s)) / (until_s - from_s)
            for begin_s, end_s in list_spans(pool, first, changes, until_s)
        )
        for pool, first in _list_pools(plan)
    ]


def list_spans(
    pool: DeploymentPlan, first: int, changes: Sequence[ReplicasChanged], duration_s: float
) -> Iterator[tuple[float, float]]:
    """List the spans of time in which a replica of a pool is held, in any order, seconds.

    Args:
        first: number of the pool's first replica among those of all pools.
    """
    own = range(first, first + pool.serving.replicas)
    since_s = dict.fromkeys(own[: pool.serving.first_replicas], 0.0)
    for change in changes:
        for replica in sorted({*change.replicas} & {*own}):
            if change.kind == "launches":
                since_s[replica] = min(change.at_s, duration_s)
            elif change.kind == "leaves":
                yield since_s.pop(replica), min(change.at_s, duration_s)
    for begin_s in since_s.values():
        yield begin_s, duration_s


def price_held(plan: DeploymentPlan, gpus_held: Sequence[float]) -> float:
    """Price of an hour of the GPUs that each pool holds, in the currency of the deployment's
    cluster; NaN without a price for each, or in several currencies.
    """
    per_hour = 0.0
    for pool, num_gpus in zip(plan.pools, gpus_held, strict=True):
        cluster = pool.placement.cluster
        if (
            cluster.price_per_gpu_hour is None
            or cluster.currency != plan.placement.cluster.currency
        ):
            return np.nan
        per_hour += cluster.price_per_gpu_hour * num_gpus
    return per_hour


def measure_availability(
    plan: DeploymentPlan, changes: Sequence[ReplicasChanged], duration_s: float
) -> float:
    """Measure the share of the held GPU-time that is not lost to failures or starts: to GPUs that
    do not work, and to others of a replica that wait for them. NaN where nothing can fail.
    """
    if not plan.failures or duration_s <= 0:
        return float("nan")
    # Each replica's GPUs that serve, and the time since which they do.
    serving: dict[int, tuple[float, int]] = {}
    for pool, first in _list_pools(plan):
        for replica in range(pool.serving.replicas):
            serves = replica < pool.serving.first_replicas
            serving[first + replica] = (0.0, pool.placement.layout.num_gpus * serves)
    served_gpu_s = 0.0
    for change in changes:
        for replica in change.replicas:
            since_s, gpus = serving[replica]
            at_s = min(change.at_s, duration_s)
            served_gpu_s += max(0.0, at_s - since_s) * gpus
            goes_on = change.kind in ("drains", "evacuates")
            from_s = max(change.serves_s, since_s) if goes_on else change.serves_s
            serving[replica] = (min(from_s, duration_s), change.num_gpus)
    served_gpu_s += sum((duration_s - since_s) * gpus for since_s, gpus in serving.values())
    return served_gpu_s / duration_s / sum(measure_held(plan, changes, duration_s))


def _list_pools(plan: DeploymentPlan) -> Iterator[tuple[DeploymentPlan, int]]:
    """List each pool with the number of its first replica among those of all pools."""
    first = 0
    for pool in plan.pools:
        yield pool, first
        first += pool.serving.replicas
