"""Headroom of a size, and the sizes next to it."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

from simulator.planner.calibration_error import compute_miss_probability
from simulator.planner.conditions import WHOLE, Change, Trials
from simulator.planner.evaluations import text_of
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult, best_first
from simulator.results.answer.deployments import AlsoMeets, LargerSize, Sizes, SmallerSize
from simulator.workload.requests import longest_tokens

FURTHEST, LEAST = 8.0, 1 / 8.0
"""Times the traffic beyond which nobody asks, and below which."""
_RISING = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.4, FURTHEST)
"""Factors that bracket it; between two of them it is bisected."""
_STEP, COARSE_STEP = 1.02, 1.04
"""Ratio between what is still carried and what is not any more, as asked and for what scatters
about it."""
_BELOW = (0.0, 0.5, 1.0)
"""Steps below what was found that must be carried too: near the most that is carried a little less
may miss by chance."""


class Headroom(NamedTuple):
    """Times the traffic that a deployment carries with all targets met."""

    factor: float
    """0 = less than an eighth."""
    is_least: bool = False
    """Whether it may carry more, which these requests cannot tell: faster, they are over before a
    steady state shows, or nobody asks."""


class Slowness(NamedTuple):
    """Measured over predicted seconds, as of one end of the calibration's bands."""

    step: float = 1.0
    first_token: float = 1.0
    """Seconds to first token, where its steps alone do not make it as long."""


AS_PREDICTED = Slowness()


def measure_headroom(
    trials: Trials,
    candidate: Candidate,
    cluster_size: ClusterSize | None,
    slowness: Slowness = AS_PREDICTED,
    near: float | None = None,
) -> Headroom:
    """Times ``workload.rate_scale`` that the replicas still carry with all targets met.

    At a factor for which the candidate's size is searched (twice the traffic) a size that carries
    it is one that the search does not exceed.

    Args:
        near: about what is expected, as of the same deployment with another sample; it is found
            coarsely then.
    """
    if cluster_size is None:
        return Headroom(0.0)

    def vary(factor: float, slower: float = slowness.step, later: float = 1.0) -> Change:
        return trials.default._replace(rate=factor, slower=slower, later=later)

    late = ("ttft", "attainment") if slowness.first_token > 1 else ("ttft",)

    def carries(factor: float) -> bool:
        if not trials.trial(candidate, cluster_size, vary(factor)).met:
            return False
        if slowness != AS_PREDICTED:
            change = vary(factor, 1.0, slowness.first_token)
            return trials.trial(candidate, cluster_size, change).find_worst(late) <= 1
        if factor != 2.0:
            return True
        needed = trials.find(candidate, vary(factor)).size
        return needed is not None and needed <= cluster_size.size

    def is_steady(factor: float) -> bool:
        return trials.read_traffic(vary(factor)).is_steady

    low, high, least = 1.0, 1.0, LEAST
    step = _STEP if near is None else COARSE_STEP
    if carries(1.0):
        least = 1.0
        for high in _skip_far(near or 1.0):
            if is_steady(low) and not is_steady(high):
                return Headroom(low, is_least=True)
            if not carries(high):
                break
            low = high
        else:
            return Headroom(FURTHEST, is_least=True)
    else:
        for low in (1 / factor for factor in _skip_far(1 / (near or 1.0))):
            if carries(low):
                break
            high = low
        else:
            return Headroom(0.0)
    while high / low > step:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if carries(middle) else (low, middle)
    while low > least and near is None:
        tried = [max(low / step**share, least) for share in _BELOW]
        missed = [factor for factor in tried if not carries(factor)]
        if not missed:
            break
        low = max(min(missed) / step, least)
    return Headroom(low)


def _skip_far(near: float) -> tuple[float, ...]:
    """Factors that bracket, from the last one on that is not beyond what is expected."""
    return _RISING[max(bisect_right(_RISING, near) - 1, 1) :]


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
            worst_target=below.binding_target,
            worst_ratio=below.worst,
            measured=below.measured[below.binding_target],
        ),
        also_meets=None
        if smaller is None
        else AlsoMeets(
            gpus=smaller.cluster_size.size,
            worst_target=smaller.outcome.binding_target,
            worst_ratio=smaller.outcome.worst,
            measured=smaller.outcome.measured[smaller.outcome.binding_target],
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
        worst_target=None if outcome is None else outcome.binding_target,
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
            found = one._replace(cluster_size=there, outcome=outcome, risk=missing)
            tried.append(found._replace(cost_per_hour=size * machines.gpu_hour))
    met = [one for one in tried if one.outcome is not None and one.outcome.met]
    return min(met, key=best_first, default=None)
