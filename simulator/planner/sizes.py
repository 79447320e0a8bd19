"""The sizes around the recommended one: what fails on the next smaller cluster, and what the next
larger one brings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulator.planner.calibration_error import compute_miss_probability
from simulator.planner.evaluations import explorer, text_of
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.search import SearchResult, best_first
from simulator.workload.requests import longest_tokens

_TRIED = 4
"""Deployments that are simulated on the next larger size, besides the recommended one."""


def around(result: SearchResult, evaluation: Evaluation) -> dict[str, Any]:
    """The next smaller and the next larger size of the recommended cluster; each ``None`` where
    there is none within the limits.

    On the larger one the best of several deployments is named: the recommended one and the
    runners-up on the same machines, with as many replicas as the cluster holds. Pools are not sized
    anew for it, so they count only where that is their own size.
    """
    cluster_size, machines = (
        evaluation.cluster_size,
        result.space.machines[evaluation.candidate.shape.machines],
    )
    if cluster_size is None:
        return {}
    place = machines.sizes.index(cluster_size.size)
    smaller: dict[str, Any] | None = None
    larger: dict[str, Any] | None = None
    if place and evaluation.below is not None:
        below = evaluation.below
        target = below.tightest
        smaller = {
            "gpus": machines.sizes[place - 1],
            "worst_target": target,
            "worst_ratio": below.worst,
            "measured": below.measured[target],
        }
    if place + 1 < len(machines.sizes):
        size = machines.sizes[place + 1]
        larger = {"gpus": size, "cost_per_hour": size * machines.gpu_hour}
        best = _best_on(result, evaluation, size)
        if best is not None and best.outcome is not None:
            larger |= {
                "deployment": text_of(result, best),
                "worst_target": best.outcome.tightest,
                "worst_ratio": best.outcome.worst,
            }
    return {"smaller": smaller, "larger": larger}


def _best_on(result: SearchResult, first: Evaluation, size: int) -> Evaluation | None:
    """The best deployment on the first one's machines at another size; ``None`` where none that was
    tried meets the targets there.
    """
    machines = result.space.machines[first.candidate.shape.machines]
    here = [
        one
        for one in result.evaluations
        if one.cluster_size is not None
        and one.candidate.shape.machines == first.candidate.shape.machines
    ]
    tried: list[Evaluation] = []
    for one in [first, *(other for other in here if other is not first)][: 1 + _TRIED]:
        ranks = one.candidate.shape.num_ranks
        replicas = (size - result.space.spare_gpus(one.candidate.shape)) // ranks
        if one.cluster_size is None:
            continue
        if one.cluster_size.size == size:
            tried.append(one)
        elif one.candidate.prefill is None and replicas >= 1:
            there = one.cluster_size._replace(size=size, replicas=replicas)
            trials = explorer(result, one)
            outcome = trials.trial(there)
            missing = compute_miss_probability(
                trials.plan(ClusterSize(0, 1)), outcome, longest_tokens(trials.traffic.trace)
            )
            cost, used = size * machines.gpu_hour, replicas * ranks
            tried.append(
                replace(
                    one,
                    cluster_size=there,
                    outcome=outcome,
                    cost_per_hour=cost,
                    num_gpus=used,
                    risk=missing,
                )
            )
    met = [one for one in tried if one.outcome is not None and one.outcome.met]
    return min(met, key=best_first, default=None)
