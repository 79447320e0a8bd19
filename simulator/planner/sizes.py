"""Sizes next to the recommended one: what fails on the next smaller cluster, and what the next
larger one brings.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.planner.calibration_error import compute_miss_probability
from simulator.planner.conditions import WHOLE
from simulator.planner.evaluations import text_of
from simulator.planner.explore import Evaluation
from simulator.planner.search import SearchResult, best_first
from simulator.results.answer.deployments import AlsoMeets, LargerSize, Sizes, SmallerSize
from simulator.workload.requests import longest_tokens

_TRIED = 4
"""Deployments that are simulated on the next larger size, besides the recommended one."""


def find_sizes(result: SearchResult, evaluation: Evaluation) -> Sizes:
    """The next smaller and the next larger size of the recommended cluster; ``None`` where there
    is none within the limits.

    On the larger one the best of several deployments is named: the recommended one and the
    runners-up on the same machines, with as many replicas as the cluster holds. Pools are not sized
    anew for it, so they count only where that is their own size.
    """
    machines = result.space.machines_at(evaluation.candidate.shape)
    if evaluation.size is None:
        return Sizes()
    place = machines.sizes.index(evaluation.size)
    below, smaller = evaluation.below, evaluation.smaller
    larger = machines.sizes[place + 1 : place + 2]
    return Sizes(
        smaller=None
        if below is None
        else SmallerSize(
            gpus=machines.sizes[place - 1],
            worst_target=below.tightest,
            worst_ratio=below.worst,
            measured=below.measured[below.tightest],
        ),
        also_meets=None
        if smaller is None
        else AlsoMeets(
            gpus=smaller.cluster_size.size,
            worst_target=smaller.outcome.tightest,
            worst_ratio=smaller.outcome.worst,
            measured=smaller.outcome.measured[smaller.outcome.tightest],
            sampling_error=smaller.error,
        ),
        larger=_describe_larger(result, evaluation, larger[0]) if larger else None,
    )


def _describe_larger(result: SearchResult, evaluation: Evaluation, size: int) -> LargerSize:
    best = _find_best(result, evaluation, size)
    outcome = None if best is None else best.outcome
    return LargerSize(
        gpus=size,
        cost_per_hour=size * result.space.machines_at(evaluation.candidate.shape).gpu_hour,
        deployment=None if best is None else text_of(result, best),
        worst_target=None if outcome is None else outcome.tightest,
        worst_ratio=None if outcome is None else outcome.worst,
    )


def _find_best(result: SearchResult, first: Evaluation, size: int) -> Evaluation | None:
    """The best deployment on the first one's machines at another size; ``None`` where none that was
    tried meets the targets there.
    """
    machines = result.space.machines_at(first.candidate.shape)
    place = first.candidate.shape.machines
    here = [one for one in result.met if one.candidate.shape.machines == place]
    tried: list[Evaluation] = []
    for one in [first, *(other for other in here if other is not first)][: 1 + _TRIED]:
        shape = one.candidate.shape
        replicas = result.space.count_replicas(size, shape)
        if one.cluster_size is None:
            continue
        if one.cluster_size.size == size:
            tried.append(one)
        elif one.candidate.prefill is None and replicas >= 1:
            there = one.cluster_size._replace(size=size, replicas=replicas)
            outcome = result.trials.trial(one.candidate, there, WHOLE)
            plan = result.trials.open_explorer(one.candidate, WHOLE).plan(there)
            missing = compute_miss_probability(plan, outcome, longest_tokens(result.traffic.trace))
            found = replace(one, cluster_size=there, outcome=outcome, risk=missing)
            tried.append(replace(found, cost_per_hour=size * machines.gpu_hour))
    met = [one for one in tried if one.outcome is not None and one.outcome.met]
    return min(met, key=best_first, default=None)
