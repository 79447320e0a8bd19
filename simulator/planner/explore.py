"""The smallest cluster on which one deployment meets every target, found by trials: bracketing,
then bisection over the sizes, then their neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from simulator.base.errors import UserError
from simulator.base.recent import Recent
from simulator.config.deployment import DeploymentSpec, PrefillPoolSpec
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine.pool import PoolState
from simulator.engine.table import StepTable, slow_table, start_table
from simulator.engine.timeline import serve
from simulator.planner.calibration_error import compute_miss_probability
from simulator.planner.screen import Candidate
from simulator.planner.space import Space, Spares, count_spares, explain_no_room
from simulator.planner.traffic import Traffic
from simulator.planner.trial import Outcome, estimate_sampling_error, measure_outcome
from simulator.workload.requests import longest_tokens

_BELOW, _ABOVE = 2, 1
"""Sizes that are tried below and above the one that bisection finds: with few requests a larger
cluster may miss what a smaller one meets ..."""
_SURELY = 1.5
"""... where no target is missed, or kept, by so much that chance cannot be what decides."""
_MOST_RATIO = 2.0
"""Ratio of a missed target beyond which it says no more of how much is lacking: queues grow without
bound; and the inverse of the least that counts."""
_LEAST_STEEPNESS = 0.5
"""Least power of the number of GPUs that the worst ratio is taken to fall with."""
_TABLES = Recent[tuple[Hashable, ...], StepTable](most=96)


class ClusterSize(NamedTuple):
    """Replicas on a cluster."""

    size: int
    """GPUs of the cluster."""
    replicas: int
    prefill_replicas: int = 0


class SmallerMet(NamedTuple):
    """A cluster that meets all targets, smaller than one that misses some."""

    cluster_size: ClusterSize
    outcome: Outcome
    error: float
    """Standard error of its worst ratio, by drawing blocks of neighbouring requests again."""


class Evaluation(NamedTuple):
    """Result of exploring one deployment."""

    candidate: Candidate
    cluster_size: ClusterSize | None
    """The smallest cluster that meets all targets; ``None`` where not even the largest does."""
    outcome: Outcome | None
    """Outcome there, or on the largest cluster; ``None`` where the deployment cannot run the
    workload at all."""
    cost_per_hour: float
    """Cost of the cluster, with electricity where that is paid apart; infinite without one."""
    tried: tuple[tuple[ClusterSize, float], ...] = ()
    """Every trial: the worst target's ratio."""
    why: str = ""
    """Why there is no size."""
    below: Outcome | None = None
    """On the next smaller cluster: what fails there."""
    smaller: SmallerMet | None = None
    """A smaller cluster that meets the targets, though one between the two does not."""
    most: ClusterSize | None = None
    """Size that ``outcome`` is of where none is enough: as much as the limits allow."""
    was_stored: bool = False
    """Whether it was found by an earlier search."""
    quality: float = 0.0
    """Score of the model; 0 without one."""
    risk: float = 0.0
    """See :func:`simulator.planner.calibration_error.compute_miss_probability`."""

    @property
    def size(self) -> int | None:
        """GPUs of the cluster; ``None`` without one."""
        return None if self.cluster_size is None else self.cluster_size.size

    @property
    def worst_tried(self) -> dict[int, float]:
        """Worst ratio on each cluster that was tried, split as is best, by its GPUs."""
        worst: dict[int, float] = {}
        for tried, ratio in self.tried:
            worst[tried.size] = min(worst.get(tried.size, math.inf), ratio)
        return worst

    @property
    def needed(self) -> float:
        """GPUs that just meet the targets, between the next smaller size that was tried and the one
        found, by how much that misses and this one keeps them; infinite without one.
        """
        return self.estimate_needed(self.worst_tried.get(self.size or 0, 1.0))

    def estimate_needed(self, worst: float) -> float:
        """GPUs that would just meet the targets, were the worst ratio at the size that was found
        another.
        """
        if self.size is None:
            return math.inf
        tried, size = self.worst_tried, self.size
        kept = min(max(tried.get(size, 1.0), 1 / _MOST_RATIO), 1.0)
        below = max((one for one in tried if one < size and tried[one] > 1.0), default=None)
        steepness = 1.0
        if below is not None:
            fall = math.log(min(tried[below], _MOST_RATIO) / kept)
            steepness = max(fall / math.log(size / below), _LEAST_STEEPNESS)
        ratio = min(max(worst, 1 / _MOST_RATIO), _MOST_RATIO)
        return size * float(ratio ** (1 / steepness))

    @property
    def num_gpus(self) -> int:
        """GPUs of the cluster that its replicas take up; 0 without one."""
        return 0 if self.cluster_size is None else self.candidate.count_gpus(*self.cluster_size[1:])


def resize_candidate(evaluation: Evaluation) -> Candidate:
    """The candidate with as many replicas as were found: where the next search for it begins."""
    candidate, cluster_size = evaluation.candidate, evaluation.cluster_size
    if cluster_size is None:
        return candidate
    return candidate._replace(
        replicas=cluster_size.replicas, prefill_replicas=cluster_size.prefill_replicas
    )


@dataclass
class Explorer:
    """Trials of one candidate on some traffic, each of a whole deployment as it would be started:
    all replicas, behind the balancer that they have.
    """

    space: Space
    candidate: Candidate
    traffic: Traffic
    seed: int
    slower: float = 1.0
    """All of a step's seconds are multiplied with this: how far off the calibration may be."""
    later: float = 1.0
    """All seconds to first token are multiplied with this."""
    share: float = 1.0
    """Share of the traffic that was asked for, where it is less and tokens a second are a target:
    no more of that can be met."""
    outcomes: dict[ClusterSize, Outcome] = field(default_factory=dict)
    """Outcomes so far, of this search and of others of the same process."""
    _tried: dict[ClusterSize, float] = field(default_factory=dict)
    """Worst ratio of every size that this search tried."""

    def find(self) -> Evaluation:
        """Find the smallest size from which all that were tried meet the targets."""
        try:
            return self._find()
        except UserError as error:
            return self._refuse(str(error).split("]: ", 1)[-1])

    def _refuse(
        self, why: str, outcome: Outcome | None = None, most: ClusterSize | None = None
    ) -> Evaluation:
        tried = tuple(self._tried.items())
        return Evaluation(self.candidate, None, outcome, math.inf, tried, why, most=most)

    def _find(self) -> Evaluation:
        sides, candidate = self.candidate.sides, self.candidate
        sizes = self.space.list_filled_sizes(*sides)
        if not sizes:
            if candidate.prefill is not None:
                return self._refuse("the two pools do not fit within the limits")
            why = f"no cluster of the limits is left without {self.space.question.spare}"
            return self._refuse(explain_no_room(self.space, candidate.shape, 1) or why)
        replicas = candidate.replicas, candidate.prefill_replicas
        wanted = self.space.find_cluster(sides, replicas) or sizes[-1]
        start = next((n for n, size in enumerate(sizes) if size >= wanted), len(sizes) - 1)
        worst: dict[int, float] = {}

        def measure(place: int) -> float:
            worst[place] = self.fill(sizes[place])[1].worst
            return worst[place]

        found = find_size(len(sizes), start, measure)
        if found is None:
            return self._record_miss(*self.fill(sizes[-1]))
        smaller = max((n for n in range(found) if worst.get(n, math.inf) <= 1.0), default=None)
        return self._record_size(
            *self.fill(sizes[found]),
            below=self.fill(sizes[found - 1])[1] if found else None,
            smaller=None if smaller is None else self._measure_smaller(sizes[smaller]),
        )

    def fill(self, size: int) -> tuple[ClusterSize, Outcome]:
        """The most replicas that a cluster holds, split between pools as is best for the worst
        target; and their outcome.
        """
        fills = self.space.list_fills(size, *self.candidate.sides)
        low, high = 0, len(fills) - 1
        best: tuple[ClusterSize, Outcome] | None = None
        while low <= high:
            middle = (low + high) // 2
            tried = ClusterSize(size, *fills[middle])
            outcome = self.trial(tried)
            self._tried[tried] = outcome.worst
            if best is None or outcome.worst < best[1].worst:
                best = tried, outcome
            if _lacks_prompts(outcome):
                low = middle + 1
            else:
                high = middle - 1
        if best is None:
            raise UserError(f"no replica fits on {size:,} GPUs")
        return best

    def _record_size(
        self,
        cluster_size: ClusterSize,
        outcome: Outcome,
        below: Outcome | None,
        smaller: SmallerMet | None,
    ) -> Evaluation:
        plan = self.plan(cluster_size)
        spares = count_spares(self.space, self.candidate.sides, *cluster_size[1:])
        if any(spares):  # they serve, too, until another fails
            outcome = self.trial(add_spares(cluster_size, spares))
        return Evaluation(
            self.candidate,
            cluster_size,
            outcome,
            cluster_size.size * self.space.machines_at(self.candidate.shape).gpu_hour,
            tuple(self._tried.items()),
            below=below,
            smaller=smaller,
            risk=compute_miss_probability(plan, outcome, longest_tokens(self.traffic.trace)),
        )

    def _measure_smaller(self, size: int) -> SmallerMet:
        cluster_size, found = self.fill(size)
        requests = self.serve(cluster_size).iloc[self.traffic.lead :]
        question = self.space.question
        error = estimate_sampling_error(requests, found, question.targets, question.workload.slo)
        return SmallerMet(cluster_size, found, error)

    def _record_miss(self, largest: ClusterSize, found: Outcome) -> Evaluation:
        why = (
            f"misses {found.binding_target} by {found.worst:.2f}x on the largest cluster within "
            f"the limits ({largest.size} GPUs)"
        )
        spares = count_spares(self.space, self.candidate.sides, *largest[1:])
        if any(spares):
            why += f", of whose replicas {sum(spares)} {'is' if sum(spares) == 1 else 'are'} spare"
        return self._refuse(why, found, largest)

    def trial(self, cluster_size: ClusterSize) -> Outcome:
        """Serve all requests with so many replicas, once."""
        if cluster_size not in self.outcomes:
            question, traffic = self.space.question, self.traffic
            requests = self.serve(cluster_size)
            targets, slo = question.targets, question.workload.slo
            if self.share < 1 and targets.output_tokens_per_s is not None:
                least = {"output_tokens_per_s": self.share * targets.output_tokens_per_s}
                targets = targets.model_copy(update=least)
            found = measure_outcome(requests, traffic, targets, slo, self.later)
            self.outcomes[cluster_size] = found
        return self.outcomes[cluster_size]

    def serve(self, cluster_size: ClusterSize) -> pd.DataFrame:
        """The requests' table, those of the lead-in included."""
        plan = self.plan(cluster_size)
        fill = self._fill_table
        return serve(plan, self.traffic.trace, fill=fill, keeps_steps=False).requests_table()

    def _fill_table(self, pool: PoolState, stream: str) -> StepTable:
        """A table that is filled once for all replicas of a shape, whatever their pool."""
        plan = pool.plan
        spec = plan.spec.model_dump_json(
            exclude={"name", "cluster", "replicas", "order", "balancing", "kv_tiers", "prefill"}
        )
        machines = self.space.machines_at(self.candidate.shape).offer.cluster
        # Another model, or another recording, may have the same path.
        named = plan.placement.model.model_dump_json(), str(self.space.folder)
        experts = plan.placement.experts
        placed = experts and (experts.placed.expert_LP.tobytes(), experts.placed.rank_LP.tobytes())
        by_domain = pool.profiles is not None
        key = (spec, *named, machines, pool.max_tokens, stream, plan.placement.seed, by_domain)
        table = _TABLES.get((*key, placed), lambda: start_table(pool.mixes))
        return slow_table(table, self.slower)

    def plan(self, cluster_size: ClusterSize) -> DeploymentPlan:
        """The plan of so many replicas."""
        spec = deployment(self.space, self.candidate, cluster_size)
        return make_plan(spec, self.seed, "plan", self.space.folder)


def add_spares(cluster_size: ClusterSize, spares: Spares) -> ClusterSize:
    """A cluster with spare replicas beside those that keep the targets."""
    return cluster_size._replace(
        replicas=cluster_size.replicas + spares.replicas,
        prefill_replicas=cluster_size.prefill_replicas + spares.prefill_replicas,
    )


def deployment(
    space: Space, candidate: Candidate, cluster_size: ClusterSize, name: str = ""
) -> DeploymentSpec:
    """The deployment of a candidate with so many replicas."""
    (shape, prompts), (size, replicas, prefill_replicas) = candidate.sides, cluster_size
    machines, needed = space.machines_at(shape), candidate.count_gpus(replicas, prefill_replicas)
    size = size or machines.holding(needed) or machines.sizes[-1]
    if prompts is None:
        return space.spec(shape, candidate.budget, replicas, size, name)
    first = space.spec(prompts, candidate.budget)
    pool = PrefillPoolSpec(
        parallel=first.parallel,
        replicas=prefill_replicas,
        scheduling=first.scheduling,
        overlap=first.overlap,
    )
    name = name or f"{space.text(shape)}, prompts on {space.split(prompts)}"
    spec = space.spec(shape, candidate.budget, replicas, size, name)
    return spec.model_copy(update={"prefill": pool})


def _lacks_prompts(outcome: Outcome) -> bool:
    """Whether the prefill pool, and not the decode pool, is what a deployment has too little of."""
    first, later = (outcome.find_worst((name,)) for name in ("ttft_s", "tpot_s"))
    if not outcome.met and max(first, later) <= 1.0:  # what has no target of its own falls behind
        return first == 0.0
    return first > later


def find_size(count: int, start: int, measure: Callable[[int], float]) -> int | None:
    """The smallest of ``count`` rising sizes from which all that were tried meet the targets;
    ``None`` where the largest does not.

    Sizes are bracketed from ``start`` on and bisected, then the neighbours of what was found are
    tried, unless targets are missed or kept by much there: above a size that meets, another may
    miss.

    Args:
        measure: the worst target's ratio at a size; up to 1 is met.
    """
    known: dict[int, float] = {}

    def is_met(place: int) -> bool:
        if place not in known:
            known[place] = measure(place)
        return known[place] <= 1.0

    found = _find_first(count, start, is_met)
    while found is not None:
        below = _BELOW if found and known[found - 1] <= _SURELY else 0
        above = _ABOVE if known[found] * _SURELY >= 1.0 else 0
        for place in range(max(found - below, 0), min(found + above + 1, count)):
            is_met(place)
        first = 1 + max((place for place, worst in known.items() if worst > 1.0), default=-1)
        if first <= found:
            return min(place for place in known if place >= first)
        if first == count:
            return None
        found = _find_first(count, first, is_met, first)
    return None


def _find_first(
    count: int, start: int, is_met: Callable[[int], bool], least: int = 0
) -> int | None:
    """The first of ``count`` rising places, from ``least`` on, where a monotone condition holds,
    looked for around ``start``; ``None`` without one.
    """
    low, high = least - 1, count  # not met at low, met at high
    place, stride = min(max(start, 0), count - 1), 1
    while True:
        if is_met(place):
            high = place
        else:
            low = place
        if high - low <= 1:
            return high if high < count else None
        if low == least - 1:
            place, stride = max(high - stride, least), stride * 2
        elif high == count:
            place, stride = min(low + stride, count - 1), stride * 2
        else:
            place = (low + high) // 2
