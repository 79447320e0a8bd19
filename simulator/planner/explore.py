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
from simulator.planner.traffic import Traffic
from simulator.planner.trial import BACKLOG, Outcome, outcome
from simulator.workload.requests import longest_tokens

_FIRST, _LATER = ("ttft_s", "e2e_s", BACKLOG), ("tpot_s", "e2e_s", BACKLOG)
"""Targets that prompts decide, and those that decoding does."""
_MOST_MOVES = 24
_TABLES = Recent[tuple[str, str, str, str, int, str, int], StepTable](most=96)


class ClusterSize(NamedTuple):
    """Replicas on a cluster."""

    size: int
    """GPUs of the cluster."""
    replicas: int
    prefill_replicas: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What exploring one deployment found."""

    candidate: Candidate
    cluster_size: ClusterSize | None
    """The smallest cluster that meets all targets; ``None`` where not even the largest does."""
    outcome: Outcome | None
    """There, or on the largest cluster; ``None`` where the deployment cannot run the workload at
    all."""
    cost_per_hour: float
    num_gpus: int
    """That its replicas take up, of the cluster's."""
    tried: tuple[tuple[ClusterSize, float], ...] = ()
    """Every trial: the worst target's ratio."""
    why: str = ""
    """Why there is no size."""
    below: Outcome | None = None
    """On the next smaller cluster that was tried: what fails there."""
    most: ClusterSize | None = None
    """What ``outcome`` is of where there is no size: as much as the limits allow."""
    was_stored: bool = field(default=False, compare=False)
    """Whether it was found by an earlier search."""
    risk: float = 0.0
    """See :func:`simulator.planner.calibration_error.compute_miss_probability`."""


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
    """By replicas, and the share of the requests that they served."""

    def find(self) -> Evaluation:
        """Bracket and bisect."""
        sizes = self.space.sizes(self.candidate.shape, self.candidate.prefill)
        try:
            return self._pools() if self.candidate.prefill is not None else self._alike(sizes)
        except UserError as error:
            return Evaluation(
                self.candidate,
                None,
                None,
                float("inf"),
                0,
                self._tried,
                str(error).split("]: ", 1)[-1],
            )

    @property
    def _tried(self) -> tuple[tuple[ClusterSize, float], ...]:
        return tuple(
            (
                cluster_size._replace(
                    replicas=cluster_size.replicas * parts,
                    prefill_replicas=cluster_size.prefill_replicas * parts,
                ),
                found.worst,
            )
            for (cluster_size, parts), found in self._known.items()
        )

    def _usable(self, size: int) -> int:
        """GPUs that are left of a cluster when what may be lost is lost."""
        return size - self.space.spare_gpus(self.candidate.shape, self.candidate.prefill)

    def _alike(self, sizes: tuple[int, ...]) -> Evaluation:
        """Replicas that do both phases, as many as the cluster holds."""
        ranks = self.candidate.shape.num_ranks
        sizes = tuple(size for size in sizes if self._usable(size) >= ranks)
        if not sizes:
            return Evaluation(
                self.candidate,
                None,
                None,
                float("inf"),
                0,
                (),
                f"no cluster of the limits is left without {self.space.question.spare}",
            )

        def cluster_size(size: int) -> ClusterSize:
            return ClusterSize(size, self._usable(size) // ranks)

        wanted = self.candidate.replicas * ranks
        start = next(
            (n for n, size in enumerate(sizes) if self._usable(size) >= wanted), len(sizes) - 1
        )
        found = _first(len(sizes), start, lambda n: self.trial(cluster_size(sizes[n])).met)
        if found is None:
            return self._missed(cluster_size(sizes[-1]))
        best = cluster_size(sizes[found])
        below = self.trial(cluster_size(sizes[found - 1])) if found else None
        return self._met(best, best.replicas * ranks, below)

    def _pools(self) -> Evaluation:
        """A pool for each phase, each as small as its targets allow."""
        machines, candidate = self.space.machines[self.candidate.shape.machines], self.candidate
        if candidate.prefill is None:
            raise ValueError("there is no prefill pool")
        ranks = candidate.prefill.num_ranks, candidate.shape.num_ranks
        room = self._usable(machines.sizes[-1])
        most = (room - ranks[1]) // ranks[0], (room - ranks[0]) // ranks[1]
        if min(most) < 1:
            return Evaluation(
                candidate,
                None,
                None,
                float("inf"),
                0,
                (),
                "the two pools do not fit within the limits",
            )
        first, second = min(candidate.prefill_replicas, most[0]), min(candidate.replicas, most[1])
        for _ in range(
            2
        ):  # decoding hardly depends on how prompts are computed, so twice is enough
            others = second
            found = _first(
                most[0],
                first - 1,
                lambda n, d=others: self._keeps(n + 1, ClusterSize(0, d, n + 1), _FIRST),  # type: ignore[misc]
            )
            first = most[0] if found is None else found + 1
            prompts = first
            found = _first(
                most[1],
                second - 1,
                lambda n, p=prompts: self._keeps(n + 1, ClusterSize(0, n + 1, p), _LATER),  # type: ignore[misc]
            )
            second = most[1] if found is None else found + 1
        best = self._held(first, second)
        more = 1
        while (
            best is not None and not (found_there := self.trial(best)).met
        ):  # its parts did better than the whole, by chance
            of_prompts = found_there.missed_by(_FIRST) > found_there.missed_by(_LATER)
            first, second = (first + more, second) if of_prompts else (first, second + more)
            best, more = self._held(first, second), 2 * more
        if best is None:
            first = min(first, most[0])
            return self._missed(
                ClusterSize(
                    machines.sizes[-1], max(1, (room - first * ranks[0]) // ranks[1]), first
                )
            )
        return self._met(best, first * ranks[0] + second * ranks[1], None)

    def _held(self, first: int, second: int) -> ClusterSize | None:
        """So many replicas of each pool on the smallest cluster that holds them."""
        candidate = self.candidate
        if candidate.prefill is None:
            raise ValueError("there is no prefill pool")
        num_gpus = first * candidate.prefill.num_ranks + second * candidate.shape.num_ranks
        size = self.space.held(num_gpus, candidate.shape, candidate.prefill)
        return None if size is None else ClusterSize(size, second, first)

    def _keeps(self, parts: int, cluster_size: ClusterSize, names: tuple[str, ...]) -> bool:
        """Whether the pool that is split into its ``parts`` replicas keeps the targets that it
        decides, with its part of the other.
        """
        replicas, prompts = (
            -(-number // parts) for number in (cluster_size.replicas, cluster_size.prefill_replicas)
        )
        found = self._tried_once(ClusterSize(0, replicas, prompts), parts)
        other = {
            name: ratio
            for name, ratio in found.ratios.items()
            if not name.startswith((*_FIRST, *_LATER))
        }
        return max(found.missed_by(names), *other.values(), 0.0) <= 1.0

    def _met(self, cluster_size: ClusterSize, num_gpus: int, below: Outcome | None) -> Evaluation:
        price, found = (
            self.space.machines[self.candidate.shape.machines].gpu_hour,
            self.trial(cluster_size),
        )
        plan = self.plan(ClusterSize(0, 1, 1 if self.candidate.prefill is not None else 0))
        missing = compute_miss_probability(plan, found, longest_tokens(self.traffic.trace))
        return Evaluation(
            self.candidate,
            cluster_size,
            found,
            cluster_size.size * price,
            num_gpus,
            self._tried,
            below=below,
            risk=missing,
        )

    def _missed(self, largest: ClusterSize) -> Evaluation:
        found = self.trial(largest)
        name = found.tightest
        why = (
            f"misses {name} by {found.worst:.2f}x on the largest cluster within the limits "
            f"({largest.size} GPUs)"
        )
        return Evaluation(
            self.candidate, None, found, float("inf"), 0, self._tried, why, most=largest
        )

    def trial(self, cluster_size: ClusterSize) -> Outcome:
        """Serve the traffic with so many replicas: each of them, or each set of both pools that is
        alike, gets its share.
        """
        if self.candidate.prefill is None:
            return self._tried_once(
                cluster_size._replace(size=0, replicas=1), cluster_size.replicas
            )
        parts = math.gcd(cluster_size.replicas, cluster_size.prefill_replicas)
        return self._tried_once(
            ClusterSize(0, cluster_size.replicas // parts, cluster_size.prefill_replicas // parts),
            parts,
        )

    def _tried_once(self, cluster_size: ClusterSize, parts: int) -> Outcome:
        """What so many replicas do with every n-th request of ``parts``."""
        if (cluster_size, parts) not in self._known:
            self._known[cluster_size, parts] = self._serve(cluster_size, parts)
        return self._known[cluster_size, parts]

    def _serve(self, cluster_size: ClusterSize, parts: int) -> Outcome:
        question = self.space.question
        trace, lead = self.traffic.share(parts)
        requests = serve(self.plan(cluster_size), trace, fill=self._table).requests_table()
        return outcome(
            requests.iloc[lead:],
            question.targets,
            question.workload.slo,
            1 / parts,
            self.traffic.stay_s,
        )

    def _table(self, pool: PoolState, stream: str) -> StepTable:
        """Filled once for all replicas of a shape, whatever pool they are paired with."""
        plan = pool.plan
        spec = plan.spec.model_dump_json(
            exclude={"name", "cluster", "replicas", "balancing", "prefill"}
        )
        machines = self.space.machines[self.candidate.shape.machines].offer.cluster
        # Another model, or another recording, may have the same path.
        named = plan.placement.model.model_dump_json(), str(self.space.folder)
        key = (spec, *named, machines, pool.max_tokens, stream, plan.placement.seed)
        table = _TABLES.get(key, lambda: start_table(pool.prices))
        return slow_table(table, self.slower)

    def plan(self, cluster_size: ClusterSize) -> DeploymentPlan:
        """Of so many replicas, each sent every n-th request of n: what a balancer that keeps them
        even comes to.
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
    shape = candidate.shape
    machines = space.machines[shape.machines]
    size = (
        cluster_size.size
        or machines.holding(cluster_size.replicas * shape.num_ranks)
        or machines.sizes[-1]
    )
    if candidate.prefill is None:
        return space.spec(shape, candidate.budget, cluster_size.replicas, size, name)
    prompts = candidate.prefill
    needed = (
        cluster_size.replicas * shape.num_ranks + cluster_size.prefill_replicas * prompts.num_ranks
    )
    size = cluster_size.size or machines.holding(needed) or machines.sizes[-1]
    first = space.spec(prompts, candidate.budget)
    pool = PrefillPoolSpec(
        parallel=first.parallel,
        replicas=cluster_size.prefill_replicas,
        scheduling=first.scheduling,
        overlap=first.overlap,
    )
    spec = space.spec(
        shape,
        candidate.budget,
        cluster_size.replicas,
        size,
        name or f"{space.text(shape)}, prompts on {space.split(prompts)}",
    )
    return spec.model_copy(update={"prefill": pool})


def _first(count: int, start: int, is_met: Callable[[int], bool]) -> int | None:
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
