"""What a deployment would need if steps took longer, in closed form: for all that is not simulated
again and again.

The screen's curves say what a replica carries by how far latencies may go. Their limits are
stretched until the closed form needs just as many replicas as simulation found, the least stretch
that does; then steps are made longer. Limits on throughput alone are met by a factor on what is
carried. Other experts' choices and burstier arrivals are not in it: other samples of requests count
by their rate and lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.planner.closed_form import Curve
from simulator.planner.explore import Evaluation
from simulator.planner.judge import Judge, Served
from simulator.planner.samples import (
    DRAWS,
    Floats,
    Table,
    around_one,
    bands_of,
    kernels_of,
    own_of,
)
from simulator.planner.screen import Candidate
from simulator.planner.space import ReplicaShape, Space
from simulator.planner.traffic import Traffic
from simulator.planner.whatif import AS_ASKED, Change, Trials

_FACTORS = 27
_FURTHEST = 2.6
"""Standard deviations to which factors are tabulated."""
_BATCHES = 24
_NEARLY = 1 - 1e-6
"""As much as one replica fewer would need, and not quite."""
_ROUNDING = 1e-9
_BUSIEST = 0.97
"""Of what a replica carries at the most: where the closed form puts one that simulation finds able
to carry its share."""


class ReplicaCapacity(NamedTuple):
    """What a replica of one pool, or of both phases, carries by how far its latencies go; ``[n]``
    each, rising.
    """

    ranks: int
    rates: Floats
    """Requests a second."""
    needs: Floats
    """The worst of its latencies over their limits."""
    tpot_s: Floats
    ttft_s: Floats

    def carries(self, slower: float, slack: float) -> float:
        """Requests a second with all limits kept; 0 where they cannot be.

        Args:
            slack: factor on all limits.
        """
        limit = slack / slower
        n = int(np.searchsorted(self.needs, limit, side="right"))
        if n == 0:
            return 0.0
        if n == len(self.needs):
            return float(self.rates[-1]) / slower
        low, high = self.needs[n - 1], self.needs[n]
        part = math.log(limit / low) / math.log(high / low) if low > 0 else 0.0
        return float(self.rates[n - 1] ** (1 - part) * self.rates[n] ** part) / slower

    def fitted(self, least: float, most: float) -> tuple[float, float]:
        """Slack and factor with which it carries at least ``least`` and less than ``most`` requests
        a second; 1 where it does.
        """
        carried = self.carries(1.0, 1.0)
        if least <= carried < most:
            return 1.0, 1.0
        wanted = least if carried < least else most * _NEARLY
        n = int(np.searchsorted(self.rates, wanted))
        if n == 0:
            slack = float(self.needs[0])
        elif n == len(self.rates) or self.needs[n - 1] <= 0:
            slack = max(1.0, float(self.needs[-1]))
        else:
            low, high = self.rates[n - 1], self.rates[n]
            part = math.log(wanted / low) / math.log(high / low)
            slack = float(self.needs[n - 1] ** (1 - part) * self.needs[n] ** part)
        return slack, wanted / self.carries(1.0, slack)

    def latencies(self, rate: float, slower: float) -> tuple[float, float]:
        """Time per token and to the first token at so many requests a second; the second without
        bound where they are too many.
        """
        scale = max(1.0, rate / (_BUSIEST * float(self.rates[-1])))
        at = math.log(rate * slower)
        tpot_s, ttft_s = (
            slower * float(np.interp(at, np.log(self.rates * scale), v))
            for v in (self.tpot_s, self.ttft_s)
        )
        return tpot_s, ttft_s if rate * slower <= scale * self.rates[-1] else math.inf


class Pool(NamedTuple):
    """Replicas of one kind, fitted to how many of them were found to do."""

    reach: ReplicaCapacity
    replicas: int
    slack: float
    scale: float
    loads: tuple[float, ...]
    """With each of :data:`DRAWS`: load of a replica over the load with the sample asked for."""

    def needed(self, rate_per_s: float, slower: float) -> int:
        """Replicas; 0 where none keeps the limits."""
        carried = self.scale * self.reach.carries(slower, self.slack)
        return max(1, math.ceil(rate_per_s / carried * (1 - _ROUNDING))) if carried > 0 else 0


class Estimate(NamedTuple):
    """One deployment, in closed form."""

    table: Table
    factors: dict[str, tuple[float, float]]
    """By latency (``tpot_s``): what its figure is multiplied with at the low and the high end of
    the calibration's band."""
    kept: tuple[float, ...] = ()
    """Share of the requests that keep their limits at both ends, where that is a target: simulated,
    there is no closed form of it."""


def empty_table(curve: Curve, plan: DeploymentPlan, candidate: Candidate) -> Table:
    """What a deployment's errors are, without what it needs."""
    bands = bands_of(plan, candidate.prefill is not None)
    most = min(candidate.budget, plan.serving.rules.max_sequences)
    return Table(*bands, step_parts(curve, most, candidate.tpot_s), [], [], own=own_of(plan))


def step_parts(curve: Curve, most_sequences: int, tpot_s: float) -> dict[str, float]:
    """Shares of the decode step that takes as long as a time per token, by what they have in common
    with other deployments.
    """
    plan, batches = curve.plan, np.geomspace(1, max(2, most_sequences), _BATCHES)
    terms = curve.terms(batches, np.zeros(_BATCHES), 0.0)
    place = int(np.argmin(np.abs(terms.total - tpot_s)))
    total = float(terms.total[place])
    return {
        name: float(seconds[place]) / total
        for name, seconds in zip(kernels_of(plan), terms, strict=True)
        if seconds[place] > 0
    }


class Estimator:
    """Closed forms of one question's evaluations under one change: shapes that differ in little
    share what they have in common.
    """

    def __init__(self, trials: Trials, change: Change = AS_ASKED, samples: bool = False) -> None:
        """Args: samples: whether tables are of other samples of requests too."""
        self._trials, self._change = trials, change
        self._draws = DRAWS if samples else ()
        self._judges: list[Judge] = []
        self._kept: dict[
            tuple[ReplicaShape, int, str], tuple[DeploymentPlan, Curve, list[Served]]
        ] = {}

    def estimate(self, evaluation: Evaluation, rate_per_s: float | None = None) -> Estimate | None:
        """An evaluation's closed form; ``None`` where nothing was found, or the closed form knows
        no load that the targets allow.

        Args:
            rate_per_s: of the requests that the evaluation is about; absent = of the change's own
                stretch of them.
        """
        candidate, cluster_size = evaluation.candidate, evaluation.cluster_size
        if cluster_size is None:
            return None
        space, traffic = self._world(candidate)
        rate = traffic.rate_per_s if rate_per_s is None else rate_per_s
        machines = space.machines[candidate.shape.machines]
        spare = space.spare_gpus(candidate.shape, candidate.prefill)
        pools: list[Pool] = []
        sides = [("both", candidate.shape, cluster_size.replicas)]
        if candidate.prefill is not None:
            sides = [
                ("prefill", candidate.prefill, cluster_size.prefill_replicas),
                ("decode", candidate.shape, cluster_size.replicas),
            ]
        for phase, shape, replicas in sides:
            plan, curve, served = self._served(candidate, shape, phase)
            reaches = [
                _reach(judge, shape, one) for judge, one in zip(self._judges, served, strict=True)
            ]
            if any(reach is None for reach in reaches):
                return None
            fewer = replicas - 1
            if candidate.prefill is None:
                smaller = [size for size in machines.sizes if size < cluster_size.size]
                fewer = max(0, smaller[-1] - spare) // shape.num_ranks if smaller else 0
            pools.append(
                _pool(
                    [reach for reach in reaches if reach],
                    replicas,
                    fewer,
                    rate,
                    [one.traffic for one in self._judges],
                )
            )
        table = empty_table(curve, plan, candidate)

        def gpus(slower: float, loads: Sequence[float]) -> int:
            counts = [
                pool.needed(rate * load, slower) for pool, load in zip(pools, loads, strict=True)
            ]
            total = sum(count * pool.reach.ranks for count, pool in zip(counts, pools, strict=True))
            return (
                (space.held(total, candidate.shape, candidate.prefill) or 0) if all(counts) else 0
            )

        slower = sorted(
            {
                1.0,
                *(
                    math.exp(table.middle + z * table.spread)
                    for z in np.linspace(-_FURTHEST, _FURTHEST, _FACTORS)
                ),
            }
        )
        table = table._replace(
            slower=slower,
            gpus=[gpus(factor, [1.0] * len(pools)) for factor in slower],
            by_sample=tuple(
                [gpus(factor, [pool.loads[n] for pool in pools]) for factor in slower]
                for n in range(len(self._draws))
            ),
        )
        return Estimate(table, _factors(pools, rate, table, traffic.num_output))

    def _world(self, candidate: Candidate) -> tuple[Space, Traffic]:
        """The space and the traffic of the change, and judges for these and for other samples."""
        explorer = self._trials.explorer(candidate, self._change)
        if not self._judges:
            others = [
                self._trials.explorer(candidate, self._change._replace(draw=draw)).traffic
                for draw in self._draws
            ]
            self._judges = [
                Judge(explorer.space, traffic) for traffic in (explorer.traffic, *others)
            ]
        return explorer.space, explorer.traffic

    def _served(
        self, candidate: Candidate, shape: ReplicaShape, phase: str
    ) -> tuple[DeploymentPlan, Curve, list[Served]]:
        key = (shape, candidate.budget, phase)
        if key not in self._kept:
            space = self._judges[0].space
            plan = make_plan(space.spec(shape, None), space.question.seed, "plan", space.folder)
            curves = [judge.curve(shape, plan) for judge in self._judges]
            served = []
            for judge, curve in zip(self._judges, curves, strict=True):
                if phase == "both":
                    served.append(judge.both(plan, curve, candidate.budget))
                elif phase == "prefill":
                    served.append(judge.prefilling(plan, curve, candidate.budget))
                else:
                    served.append(judge.decoding(plan, curve))
            self._kept[key] = (plan, curves[0], served)
        return self._kept[key]


def _reach(judge: Judge, shape: ReplicaShape, served: Served) -> ReplicaCapacity | None:
    """Of a replica; ``None`` where it can go on under no load."""
    kept = served.possible & (served.rates > 0)
    if not kept.any():
        return None
    tpot_s, ttft_s = served.tpot_s[kept], served.ttft_s[kept]
    needs = np.maximum(tpot_s / judge.limits.tpot_s, ttft_s / judge.limits.ttft_s)
    limits = judge.space.question.targets.e2e_s.limits().values()
    if limits:
        needs = np.maximum(needs, (ttft_s + judge.traffic.num_output * tpot_s) / min(limits))
    rising = np.maximum.accumulate
    return ReplicaCapacity(
        shape.num_ranks, rising(served.rates[kept]), rising(needs), rising(tpot_s), rising(ttft_s)
    )


def _pool(
    reaches: list[ReplicaCapacity],
    replicas: int,
    fewer: int,
    rate_per_s: float,
    traffic: list[Traffic],
) -> Pool:
    """Replicas of which ``fewer`` do not do."""
    slack, scale = reaches[0].fitted(
        rate_per_s / max(replicas, 1), rate_per_s / fewer if fewer else math.inf
    )
    carried = [reach.carries(1.0, slack) for reach in reaches]
    loads = tuple(
        other.rate_per_s / traffic[0].rate_per_s * carried[0] / able if able > 0 else math.inf
        for other, able in zip(traffic[1:], carried[1:], strict=True)
    )
    return Pool(
        reaches[0],
        max(replicas, 1),
        slack,
        scale,
        tuple(load if math.isfinite(load) else 1.0 for load in loads),
    )


def _factors(
    pools: list[Pool], rate_per_s: float, table: Table, num_output: float
) -> dict[str, tuple[float, float]]:
    """What the calibration's band makes of a deployment's latencies at the size that it has: queues
    grow faster than steps.
    """

    def latencies(slower: float) -> tuple[float, float]:
        found = [pool.reach.latencies(rate_per_s / pool.replicas, slower) for pool in pools]
        return found[-1][0], found[0][1]

    base, low, high = latencies(1.0), *(latencies(edge) for edge in table.edges)
    tpot, ttft = (
        (one / own, other / own) if own > 0 else (1.0, 1.0)
        for own, one, other in zip(base, low, high, strict=True)
    )
    edges = around_one(table.ttft_band)
    ttft = (min(ttft[0], edges[0]), max(ttft[1], edges[1]))
    parts = (base[1], num_output * base[0])
    e2e = [
        (parts[0] * first + parts[1] * later) / max(sum(parts), 1e-12)
        for first, later in zip(ttft, tpot, strict=True)
    ]
    return {"tpot_s": tpot, "ttft_s": ttft, "e2e_s": (e2e[0], e2e[1])}
