"""GPUs that a deployment would need if steps took longer, analytically: for all that is not
simulated again and again.

The screen's curves say what a replica carries by how far latencies may go. Their limits are
stretched until the estimate needs just as many replicas as simulation found, the least stretch
that does; then steps are made longer. Limits on throughput alone are met by a factor on what is
carried. Other experts' choices and burstier arrivals are not in it: other samples of requests count
by their rate and lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simulator.planner.analytical import Curve
from simulator.planner.calibration_error import (
    CalibrationError,
    Edges,
    Floats,
    include_one,
    read_error,
)
from simulator.planner.conditions import AS_ASKED, Change, Trials
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import RESAMPLES, GpuDemand
from simulator.planner.screen import Candidate, Judge, Served
from simulator.planner.space import ReplicaShape

_SCORES = np.linspace(-2.6, 2.6, 27)
"""Standard deviations of the calibration's error at which demand is tabulated."""
_NUM_BATCHES = 24
"""Batches among which the typical decode step is looked for."""
_NEARLY = 1 - 1e-6
"""Share of what one replica fewer would need, which is not quite enough."""
_BUSIEST = 0.97
"""Share of the most that a replica carries: where the estimate puts one that simulation finds
able to carry its share."""


class ReplicaCapacity(NamedTuple):
    """Rates that a replica of one pool, or of both phases, carries by how far its latencies go;
    ``[n]`` each, rising.
    """

    ranks: int
    rates: Floats
    """Requests a second."""
    needs: Floats
    """The worst of its latencies over their limits."""
    tpot_s: Floats
    ttft_s: Floats

    def find_rate(self, slower: float, slack: float) -> float:
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

    def fit(self, least: float, most: float) -> tuple[float, float]:
        """Slack and factor with which it carries at least ``least`` and less than ``most`` requests
        a second; 1 where it does.
        """
        carried = self.find_rate(1.0, 1.0)
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
        return slack, wanted / self.find_rate(1.0, slack)

    def estimate_latencies(self, rate: float, slower: float) -> tuple[float, float]:
        """Seconds per token and to the first token at so many requests a second; the latter without
        bound where these are too many.
        """
        scale = max(1.0, rate / (_BUSIEST * float(self.rates[-1])))
        at = math.log(rate * slower)
        tpot_s, ttft_s = (
            slower * float(np.interp(at, np.log(self.rates * scale), known_s))
            for known_s in (self.tpot_s, self.ttft_s)
        )
        return tpot_s, ttft_s if rate * slower <= scale * self.rates[-1] else math.inf


class FittedPool(NamedTuple):
    """Replicas of one kind, fitted to how many of them were found to do."""

    capacity: ReplicaCapacity
    replicas: int
    slack: float
    scale: float
    loads: tuple[float, ...]
    """Load of a replica with each of :data:`RESAMPLES` over the load with the sample asked for."""

    def count_gpus(self, rate_per_s: float, slower: float) -> float:
        """GPUs that just do, in parts of a replica too; 0 where none keeps the limits."""
        carried = self.scale * self.capacity.find_rate(slower, self.slack)
        return self.capacity.ranks * rate_per_s / carried if carried > 0 else 0.0


class Estimate(NamedTuple):
    """Analytical estimate of one deployment."""

    demand: GpuDemand
    factors: dict[str, Edges]
    """Factors on a latency's (``tpot_s``) figure at the low and the high end of the calibration's
    band."""
    attainment: Edges | None = None
    """Shares of the requests that keep their limits at both ends, where that is a target:
    simulated, as it has no analytical estimate."""
    latest: float = math.inf
    """Factor on the seconds to first token up to which it meets the targets at its size."""


def estimate_error(
    curve: Curve, most_sequences: int, tpot_s: float, is_pooled: bool
) -> CalibrationError:
    """The error of a deployment whose decode step takes as long as a time per token.

    Args:
        is_pooled: whether prompts have a pool of their own.
    """
    batches = np.geomspace(1, max(2, most_sequences), _NUM_BATCHES)
    terms = curve.terms(batches, np.zeros(_NUM_BATCHES), 0.0)
    step_s = tpot_s * curve.plan.placement.drafts.mean_kept
    place = int(np.argmin(np.abs(terms.total - step_s)))
    return read_error(curve.plan, np.array(terms)[:, place], is_pooled)


def estimate_candidate_error(curve: Curve, candidate: Candidate) -> CalibrationError:
    """The error of a candidate, at the time per token that the screen expects."""
    most = min(candidate.budget, curve.plan.serving.rules.max_sequences)
    return estimate_error(curve, most, candidate.tpot_s, candidate.prefill is not None)


class Estimator:
    """Closed forms of one question's evaluations under one change: shapes that differ in little
    share what they have in common.
    """

    def __init__(self, trials: Trials, change: Change = AS_ASKED, resamples: bool = False) -> None:
        """Args: resamples: whether demand is tabulated for other samples of requests too."""
        self._trials = trials
        numbers = (change.resample, *(RESAMPLES if resamples else ()))
        self._changes = [change._replace(resample=number) for number in numbers]
        self._judges: list[Judge] = []
        """For the change's own requests, and for other samples of them."""
        self._known: dict[tuple[ReplicaShape, int, str], tuple[Curve, list[Served]]] = {}

    def estimate(self, evaluation: Evaluation, rate_per_s: float | None = None) -> Estimate | None:
        """Estimate an evaluation's demand; ``None`` where nothing was found, or the model
        knows no load that the targets allow.

        Args:
            rate_per_s: of the requests that the evaluation is about; absent = of the change's own
                stretch of them.
        """
        candidate, cluster_size = evaluation.candidate, evaluation.cluster_size
        if cluster_size is None:
            return None
        explorers = [self._trials.open_explorer(candidate, change) for change in self._changes]
        traffic = explorers[0].traffic
        if not self._judges:
            self._judges = [Judge(explorers[0].space, one.traffic) for one in explorers]
        rate = traffic.rate_per_s if rate_per_s is None else rate_per_s
        sides = [("both", candidate.shape, cluster_size.replicas)]
        if candidate.prefill is not None:
            sides = [
                ("prefill", candidate.prefill, cluster_size.prefill_replicas),
                ("decode", candidate.shape, cluster_size.replicas),
            ]
        pools: list[FittedPool] = []
        known = self._count_fewer(candidate, cluster_size)
        for (phase, shape, replicas), fewer in zip(sides, known, strict=True):
            curve, served = self._serve(candidate, shape, phase)
            pool = self._fit_pool(shape, served, replicas, fewer, rate)
            if pool is None:
                return None
            pools.append(pool)
        error = estimate_candidate_error(curve, candidate)
        slower = sorted({1.0, *(math.exp(error.middle + z * error.spread) for z in _SCORES)})

        def count_gpus(factor: float, loads: Sequence[float]) -> float:
            gpus = [
                pool.count_gpus(rate * load, factor)
                for pool, load in zip(pools, loads, strict=True)
            ]
            return sum(gpus) if all(gpus) else 0.0

        gpus, *others = (
            [count_gpus(factor, loads) for factor in slower]
            for loads in ([1.0] * len(pools), *zip(*(pool.loads for pool in pools), strict=True))
        )
        demand = GpuDemand(error, slower, gpus, by_resample=tuple(others))
        return Estimate(demand, _estimate_factors(pools, rate, error, traffic.num_output))

    def _serve(
        self, candidate: Candidate, shape: ReplicaShape, phase: str
    ) -> tuple[Curve, list[Served]]:
        """The curve of the change's own requests, and a replica under rising loads of each
        sample.
        """
        key = (shape, candidate.budget, phase)
        if key not in self._known:
            plan = self._judges[0].space.plan(shape)
            curves = [judge.curve(shape, plan) for judge in self._judges]
            self._known[key] = (
                curves[0],
                [
                    judge.serve(phase, plan, curve, candidate.budget)
                    for judge, curve in zip(self._judges, curves, strict=True)
                ],
            )
        return self._known[key]

    def _count_fewer(self, candidate: Candidate, cluster_size: ClusterSize) -> list[int]:
        """Replicas of each pool on the next smaller cluster, which are known not to do: split as
        nearly alike as that holds.
        """
        space, sides = self._judges[0].space, candidate.sides
        smaller = [size for size in space.sizes(*sides) if size < cluster_size.size]
        fills = space.list_fills(max(smaller), *sides) if smaller else []
        if candidate.prefill is None:
            return [fills[0][0] if fills else 0]
        ratio = cluster_size.prefill_replicas / cluster_size.replicas
        decodes, prompts = min(
            fills, key=lambda one: abs(math.log(one[1] / one[0] / ratio)), default=(0, 0)
        )
        counts = prompts, decodes
        return [min(a, b - 1) for a, b in zip(counts, cluster_size[:0:-1], strict=True)]

    def _fit_pool(
        self,
        shape: ReplicaShape,
        served: Sequence[Served],
        replicas: int,
        fewer: int,
        rate_per_s: float,
    ) -> FittedPool | None:
        """Replicas of which ``fewer`` do not do; ``None`` where one can go on under no load."""
        capacities = [
            measure_capacity(judge, shape, one)
            for judge, one in zip(self._judges, served, strict=True)
        ]
        known = [capacity for capacity in capacities if capacity is not None]
        if len(known) < len(capacities):
            return None
        most = rate_per_s / fewer if fewer else math.inf
        slack, scale = known[0].fit(rate_per_s / max(replicas, 1), most)
        rates = [judge.traffic.rate_per_s for judge in self._judges]
        carried = [capacity.find_rate(1.0, slack) for capacity in known]
        loads = (
            rate / rates[0] * carried[0] / able if able > 0 else math.inf
            for rate, able in zip(rates[1:], carried[1:], strict=True)
        )
        finite = tuple(load if math.isfinite(load) else 1.0 for load in loads)
        return FittedPool(known[0], max(replicas, 1), slack, scale, finite)


def measure_capacity(judge: Judge, shape: ReplicaShape, served: Served) -> ReplicaCapacity | None:
    """Capacity of a replica; ``None`` where it can go on under no load."""
    kept = served.possible & (served.rates > 0)
    if not kept.any():
        return None
    tpot_s, ttft_s = served.tpot_s[kept], served.ttft_s[kept]
    needs = np.maximum(tpot_s / judge.limits.tpot_s, ttft_s / judge.limits.ttft_s)
    limits = judge.space.question.targets.e2e_s.limits().values()
    if limits:
        needs = np.maximum(needs, (ttft_s + judge.traffic.num_output * tpot_s) / min(limits))
    rising = (
        np.maximum.accumulate(values) for values in (served.rates[kept], needs, tpot_s, ttft_s)
    )
    return ReplicaCapacity(shape.num_ranks, *rising)


def _estimate_factors(
    pools: Sequence[FittedPool], rate_per_s: float, error: CalibrationError, num_output: float
) -> dict[str, Edges]:
    """Factors of the calibration's band on a deployment's latencies at the size that it has: queues
    grow faster than steps.
    """

    def estimate(slower: float) -> tuple[float, float]:
        found = [
            pool.capacity.estimate_latencies(rate_per_s / pool.replicas, slower) for pool in pools
        ]
        return found[-1][0], found[0][1]

    base, low, high = (estimate(factor) for factor in (1.0, *error.edges))
    tpot, ttft = (
        (one / own, other / own) if own > 0 else (1.0, 1.0)
        for own, one, other in zip(base, low, high, strict=True)
    )
    edges = include_one(error.bands.first_token)
    ttft = (min(ttft[0], edges[0]), max(ttft[1], edges[1]))
    parts = (base[1], num_output * base[0])
    low_e2e, high_e2e = (
        (parts[0] * first + parts[1] * later) / max(sum(parts), 1e-12)
        for first, later in zip(ttft, tpot, strict=True)
    )
    return {"tpot_s": tpot, "ttft_s": ttft, "e2e_s": (low_e2e, high_e2e)}
