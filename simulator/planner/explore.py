"""The smallest cluster on which one deployment meets every target, found by trials: bracketing,
then bisection over the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from simulator.base.errors import UserError
from simulator.base.recent import Recent
from simulator.config.deployment import DeploymentSpec, PrefillPoolSpec
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine.pool import PoolState
from simulator.engine.table import StepTable, slow_table, start_table
from simulator.engine.timeline import serve
from simulator.planner.calibration_error import compute_miss_probability
from simulator.planner.screen import Candidate
from simulator.planner.space import Space
from simulator.planner.spares import count_spares, explain_no_room
from simulator.planner.traffic import Traffic
from simulator.planner.trial import Outcome, outcome
from simulator.results.answer.deployments import BACKLOG
from simulator.workload.requests import longest_tokens

_FIRST, _LATER = ("ttft_s", "e2e_s", BACKLOG), ("tpot_s", "e2e_s", BACKLOG)
"""Targets that prompts decide, and those that decoding does."""
_MOST_MOVES = 24
_TABLES = Recent[tuple[str, str, str, str, int, str, int, bool], StepTable](most=96)


class ClusterSize(NamedTuple):
    """Replicas on a cluster."""

    size: int
    """GPUs of the cluster."""
    replicas: int
    prefill_replicas: int = 0


@dataclass(frozen=True)
class Evaluation:
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
    """On the next smaller cluster that was tried: what fails there."""
    most: ClusterSize | None = None
    """Size that ``outcome`` is of where none is enough: as much as the limits allow."""
    was_stored: bool = field(default=False, compare=False)
    """Whether it was found by an earlier search."""
    risk: float = 0.0
    """See :func:`simulator.planner.calibration_error.compute_miss_probability`."""

    @property
    def size(self) -> int | None:
        """GPUs of the cluster; ``None`` without one."""
        return None if self.cluster_size is None else self.cluster_size.size

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
    """Trials of one candidate on one stretch of traffic."""

    space: Space
    candidate: Candidate
    traffic: Traffic
    seed: int
    slower: float = 1.0
    """All of a step's seconds are multiplied with this: how far off the calibration may be."""
    _known: dict[tuple[ClusterSize, int], Outcome] = field(default_factory=dict)
    """Outcomes by replicas, and by the parts of the requests of which they served one."""

    def find(self) -> Evaluation:
        """Find the smallest size that meets all targets: bracket and bisect."""
        try:
            return self._find_replicas() if self.candidate.prefill is None else self._find_pools()
        except UserError as error:
            return self._refuse(str(error).split("]: ", 1)[-1], self._tried)

    def _refuse(self, why: str, tried: tuple[tuple[ClusterSize, float], ...] = ()) -> Evaluation:
        return Evaluation(self.candidate, None, None, math.inf, tried, why)

    @property
    def _tried(self) -> tuple[tuple[ClusterSize, float], ...]:
        return tuple(
            (
                one._replace(
                    replicas=one.replicas * parts, prefill_replicas=one.prefill_replicas * parts
                ),
                found.worst,
            )
            for (one, parts), found in self._known.items()
        )

    def _find_replicas(self) -> Evaluation:
        """Replicas that do both phases, as many as the cluster holds."""
        shape = self.candidate.shape
        counts = [
            ClusterSize(size, self.space.count_replicas(size, shape))
            for size in self.space.sizes(shape)
        ]
        sizes = [one for one in counts if one.replicas >= 1]
        if not sizes:
            spare = self.space.question.spare
            why = f"no cluster of the limits is left without {spare}"
            return self._refuse(explain_no_room(self.space, shape, 1) or why)
        wanted = self.candidate.replicas
        start = next((n for n, one in enumerate(sizes) if one.replicas >= wanted), len(sizes) - 1)
        found = _find_first(len(sizes), start, lambda n: self.trial(sizes[n]).met)
        if found is None:
            return self._record_miss(sizes[-1])
        below = self.trial(sizes[found - 1]) if found else None
        return self._record_size(sizes[found], below)

    def _find_pools(self) -> Evaluation:
        """A pool for each phase, each as small as its targets allow."""
        machines, candidate = self.space.machines_at(self.candidate.shape), self.candidate
        if candidate.prefill is None:
            raise ValueError("there is no prefill pool")
        ranks = candidate.prefill.num_ranks, candidate.shape.num_ranks
        room = machines.sizes[-1] - self.space.spare_gpus(*candidate.sides)
        most = (room - ranks[1]) // ranks[0], (room - ranks[0]) // ranks[1]
        if min(most) < 1:
            return self._refuse("the two pools do not fit within the limits")
        first, second = min(candidate.prefill_replicas, most[0]), min(candidate.replicas, most[1])
        for _ in range(2):  # decoding hardly depends on how prompts are computed: twice is enough
            first = self._find_pool("prefill_replicas", most[0], first, second, _FIRST)
            second = self._find_pool("replicas", most[1], second, first, _LATER)
        best = self._fit_pools(first, second)
        more = 1  # the parts may do better than the whole, by chance
        while best is not None and not (whole := self.trial(best)).met:
            of_prompts = whole.find_worst(_FIRST) > whole.find_worst(_LATER)
            first, second = (first + more, second) if of_prompts else (first, second + more)
            best, more = self._fit_pools(first, second), 2 * more
        if best is None:
            first = min(first, most[0])
            left = max(1, (room - first * ranks[0]) // ranks[1])
            return self._record_miss(ClusterSize(machines.sizes[-1], left, first))
        return self._record_size(best, None)

    def _find_pool(
        self, name: str, most: int, start: int, others: int, targets: tuple[str, ...]
    ) -> int:
        """The fewest replicas of a pool that keep the targets which it decides; ``most`` where none
        do.

        Args:
            start: replicas that are tried first.
            others: replicas of the other pool.
        """
        both = ClusterSize(0, others, others)

        def keeps(place: int) -> bool:
            tried = both._replace(**{name: place + 1})
            return self._keeps_targets(place + 1, tried, targets)

        found = _find_first(most, start - 1, keeps)
        return most if found is None else found + 1

    def _fit_pools(self, first: int, second: int) -> ClusterSize | None:
        """Replicas of each pool on the smallest cluster that holds them."""
        shape, prompts = self.candidate.sides
        size = self.space.find_cluster(shape, second, prompts, first)
        return None if size is None else ClusterSize(size, second, first)

    def _keeps_targets(self, parts: int, cluster_size: ClusterSize, names: tuple[str, ...]) -> bool:
        """Whether the pool that is split into its ``parts`` replicas keeps the targets that it
        decides, with its part of the other.
        """
        replicas, prompts = (
            -(-number // parts) for number in (cluster_size.replicas, cluster_size.prefill_replicas)
        )
        found = self._serve_once(ClusterSize(0, replicas, prompts), parts)
        other = {
            name: ratio
            for name, ratio in found.ratios.items()
            if not name.startswith((*_FIRST, *_LATER))
        }
        return max(found.find_worst(names), *other.values(), 0.0) <= 1.0

    def _record_size(self, cluster_size: ClusterSize, below: Outcome | None) -> Evaluation:
        found = self.trial(cluster_size)
        plan = self.plan(ClusterSize(0, 1, 1 if self.candidate.prefill is not None else 0))
        return Evaluation(
            self.candidate,
            cluster_size,
            found,
            cluster_size.size * self.space.machines_at(self.candidate.shape).gpu_hour,
            self._tried,
            below=below,
            risk=compute_miss_probability(plan, found, longest_tokens(self.traffic.trace)),
        )

    def _record_miss(self, largest: ClusterSize) -> Evaluation:
        found = self.trial(largest)
        name = found.tightest
        why = (
            f"misses {name} by {found.worst:.2f}x on the largest cluster within the limits "
            f"({largest.size} GPUs)"
        )
        spares = count_spares(self.space, self.candidate.sides, *largest[1:])
        if any(spares):
            why += f", of whose replicas {sum(spares)} {'is' if sum(spares) == 1 else 'are'} spare"
        return Evaluation(self.candidate, None, found, math.inf, self._tried, why, most=largest)

    def trial(self, cluster_size: ClusterSize) -> Outcome:
        """Serve the traffic with so many replicas: each of them, or each set of both pools that is
        alike, gets its share.
        """
        if self.candidate.prefill is None:
            return self._serve_once(
                cluster_size._replace(size=0, replicas=1), cluster_size.replicas
            )
        parts = math.gcd(cluster_size.replicas, cluster_size.prefill_replicas)
        return self._serve_once(
            ClusterSize(0, cluster_size.replicas // parts, cluster_size.prefill_replicas // parts),
            parts,
        )

    def _serve_once(self, cluster_size: ClusterSize, parts: int) -> Outcome:
        """Serve every n-th request of ``parts`` with so many replicas, once."""
        if (cluster_size, parts) not in self._known:
            self._known[cluster_size, parts] = self._serve(cluster_size, parts)
        return self._known[cluster_size, parts]

    def _serve(self, cluster_size: ClusterSize, parts: int) -> Outcome:
        question = self.space.question
        trace, lead = self.traffic.share(parts)
        requests = serve(self.plan(cluster_size), trace, fill=self._fill_table).requests_table()
        return outcome(
            requests.iloc[lead:],
            question.targets,
            question.workload.slo,
            1 / parts,
            self.traffic.stay_s,
        )

    def _fill_table(self, pool: PoolState, stream: str) -> StepTable:
        """A table that is filled once for all replicas of a shape, whatever their pool."""
        plan = pool.plan
        spec = plan.spec.model_dump_json(
            exclude={"name", "cluster", "replicas", "balancing", "prefill"}
        )
        machines = self.space.machines_at(self.candidate.shape).offer.cluster
        # Another model, or another recording, may have the same path.
        named = plan.placement.model.model_dump_json(), str(self.space.folder)
        by_domain = pool.profiles is not None
        key = (spec, *named, machines, pool.max_tokens, stream, plan.placement.seed, by_domain)
        table = _TABLES.get(key, lambda: start_table(pool.mixes))
        return slow_table(table, self.slower)

    def plan(self, cluster_size: ClusterSize) -> DeploymentPlan:
        """The plan of so many replicas, each sent every n-th request of n: what a balancer that
        keeps them even comes to.
        """
        spec = deployment(self.space, self.candidate, cluster_size)
        return make_plan(
            spec.model_copy(update={"balancing": {"kind": "round_robin"}}),
            self.seed,
            "plan",
            self.space.folder,
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


def _find_first(count: int, start: int, is_met: Callable[[int], bool]) -> int | None:
    """The first of ``count`` rising places where a monotone condition holds, looked for around
    ``start``; ``None`` without one.
    """
    low, high = -1, count  # not met at low, met at high
    place, stride = min(max(start, 0), count - 1), 1
    for _ in range(_MOST_MOVES):
        if is_met(place):
            high = place
        else:
            low = place
        if high - low <= 1:
            break
        if low == -1:
            place, stride = max(high - stride, 0), stride * 2
        elif high == count:
            place, stride = min(low + stride, count - 1), stride * 2
        else:
            place = (low + high) // 2
    return high if high < count else None
