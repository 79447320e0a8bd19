"""Joint samples of what the calibration may be off, and of which sample of requests comes: what all
deployments that are compared share; and quantiles and probabilities over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.streams import open_stream
from simulator.planner.calibration_error import CalibrationError, Edges, Floats
from simulator.planner.explore import Evaluation
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult

Band = tuple[float | None, float | None]
"""Ends of a figure's band; ``None`` where there is none, or where it is infinite."""

RESAMPLES: tuple[int, ...] = (1, 2, 3)
"""Numbers of further samples of requests and of experts' choices; 0 is the one asked for."""
NUM_SAMPLES = 4000


class GpuDemand(NamedTuple):
    """GPUs that one deployment needs if steps take so many times as long."""

    error: CalibrationError
    slower: list[float]
    """Factors on the steps' seconds, rising."""
    gpus: list[float]
    """GPUs that just meet the targets at each factor, whatever the sizes that clusters come in
    (:attr:`~simulator.planner.explore.Evaluation.needed`); 0 where not even the largest does."""
    noise: tuple[float, ...] = ()
    """GPUs with each of :data:`RESAMPLES` over those with the sample asked for; empty = the
    same."""
    by_resample: tuple[list[float], ...] = ()
    """``gpus`` with each of :data:`RESAMPLES`, where that was tabulated instead."""

    @property
    def base(self) -> float:
        """GPUs that just do as the calibration has it."""
        return self.gpus[self.slower.index(1.0)]


class Priced(NamedTuple):
    """An evaluation at a cost, which is another than its own at other prices or other traffic."""

    evaluation: Evaluation
    cost: float
    """Cost per hour, in the plan's currency; infinite where nothing meets the targets."""
    demand: GpuDemand | None = None
    """GPUs that it needs if steps take longer, under other conditions than asked."""
    rate: float | None = 1.0
    """Times the traffic that is served; ``None`` under other conditions than of traffic."""
    sizes: tuple[int, ...] = ()
    """Sizes of the cluster on which a replica is left, where other machines may be lost than as
    asked; empty = as asked."""

    @property
    def finite_cost(self) -> float | None:
        """Cost per hour; ``None`` where nothing meets the targets."""
        return self.cost if math.isfinite(self.cost) else None

    def divide(self, other: Priced) -> float | None:
        """Cost over another one's; ratio of GPUs where machines cost nothing."""
        if other.cost > 0:
            return self.cost / other.cost
        mine, theirs = self.evaluation.size, other.evaluation.size
        return mine / theirs if self.cost == 0 and mine and theirs else None


def price(evaluation: Evaluation, demand: GpuDemand | None = None) -> Priced:
    """An evaluation at its own cost."""
    return Priced(evaluation, evaluation.cost_per_hour, demand)


class ErrorSamples:
    """Samples of calibration errors, the same for everything that is compared; another question's
    seed gives others.
    """

    def __init__(self, seed: int, count: int = NUM_SAMPLES) -> None:
        self._seed = seed
        self.count = count
        self._normals: dict[str, Floats] = {}
        self.resample = self._open("samples").integers(len(RESAMPLES) + 1, size=count)
        """``[n]``: which sample of requests comes; 0 is the one that was asked for."""

    def _open(self, name: str) -> np.random.Generator:
        return open_stream(self._seed, f"confidence {name}")

    def draw_scores(self, error: CalibrationError) -> Floats:
        """``[n]`` standard deviations that a deployment's steps are off."""
        total = np.zeros(self.count)
        for name, weight in error.weights.items():
            if name not in self._normals:
                self._normals[name] = self._open(name).standard_normal(self.count)
            total += weight * self._normals[name]
        return total

    def draw_slowness(self, error: CalibrationError) -> Floats:
        """``[n]`` measured over predicted seconds of a step."""
        return np.exp(error.middle + error.spread * self.draw_scores(error))

    def draw_gpus(self, demand: GpuDemand) -> Floats:
        """``[n]`` GPUs that just meet the targets; infinite where nothing does."""
        slower = self.draw_slowness(demand.error)
        if not demand.by_resample:
            noise = np.array([1.0, *(demand.noise or (1.0,) * len(RESAMPLES))])
            return np.asarray(interpolate_gpus(demand, slower) * noise[self.resample])
        found = np.empty(self.count)
        for number, gpus in enumerate((demand.gpus, *demand.by_resample)):
            here = self.resample == number
            found[here] = interpolate_gpus(demand._replace(gpus=gpus), slower[here])
        return found


def interpolate_gpus(demand: GpuDemand, slower: Floats) -> Floats:
    """GPUs that just do if steps take so many times as long: a power of that between what was
    tried, and beyond. Never fewer if slower.
    """
    needed = np.maximum.accumulate(np.array([number or math.inf for number in demand.gpus]))
    tried, at = np.log(demand.slower), np.log(slower)
    num_known = int(np.isfinite(needed).sum())
    if not num_known:
        return np.full(len(slower), np.inf)
    x, y = tried[:num_known], np.log(needed[:num_known])
    between = np.interp(at, x, y)
    if num_known > 1:
        first, last = (y[1] - y[0]) / (x[1] - x[0]), (y[-1] - y[-2]) / (x[-1] - x[-2])
        between += np.minimum(at - x[0], 0.0) * first + np.maximum(at - x[-1], 0.0) * last
    limit = math.inf
    if num_known < len(tried):
        limit = (tried[num_known - 1] + tried[num_known]) / 2
    return np.where(at <= limit, np.exp(between), np.inf)


class CostSamples:
    """Samples of what deployments need and cost, the same for all of them.

    Args:
        demands: as asked. Under other conditions a deployment's need grows with its steps' seconds
            as it does as asked, where nothing else is known.
        latest: factors on the seconds to first token up to which deployments meet the targets at
            the size that was found.
    """

    def __init__(
        self,
        result: SearchResult,
        demands: Mapping[Candidate, GpuDemand],
        latest: Mapping[Candidate, float] = MappingProxyType({}),
    ) -> None:
        self._latest = latest
        self.errors = ErrorSamples(result.question.seed)
        self.demands = demands
        self._space = result.space
        self._is_free = all(machines.gpu_hour == 0 for machines in result.space.machines)
        self._met = result.met
        self._sizes = {one.candidate: one.size for one in self._met}
        self._carried: dict[Candidate, Floats] = {}

    def settle(self, candidate: Candidate, carried: Floats) -> None:
        """Say how many times the traffic, ``[n]``, a deployment carries at the size that was found:
        it needs no more for that, and the next size at the least for more.
        """
        self._carried[candidate] = carried

    def draw_gpus(
        self,
        evaluation: Evaluation,
        demand: GpuDemand | None = None,
        rate: float | None = 1.0,
        sizes: tuple[int, ...] = (),
    ) -> Floats | None:
        """``[n]`` GPUs that a deployment needs, infinite where nothing meets the targets; ``None``
        where that is not known.

        Args:
            demand: under other conditions than those that were asked for, if it was simulated; else
                it counts where there is none as asked.
            rate: times the traffic; ``None`` under other conditions than of traffic.
            sizes: see :class:`Priced`.
        """
        candidate, known = evaluation.candidate, self.demands.get(evaluation.candidate)
        if demand is not None and (known is None or not demand.by_resample):
            known = demand._replace(noise=known.noise if known is not None else demand.noise)
        if evaluation.size is None or known is None:
            return None
        sizes = sizes or self._space.list_filled_sizes(*candidate.sides)
        ratio = self.errors.draw_gpus(known) / (known.base or 1.0)
        gpus = round_up(evaluation.needed * ratio, sizes)
        carried, size = self._carried.get(candidate), self._sizes.get(candidate)
        if size is None or rate is None:
            return gpus
        larger = min((one for one in sizes if one > size), default=math.inf)
        if carried is None:
            shift = known.error.shift_first_token(self.errors.draw_scores(known.error))
            is_late = shift > math.log(self._latest.get(candidate, math.inf))
            return np.maximum(gpus, np.where(is_late & (rate == 1.0), larger, 0.0))
        return np.where(carried >= rate, np.minimum(gpus, size), np.maximum(gpus, larger))

    def draw_costs(self, evaluation: Evaluation) -> Floats | None:
        """``[n]`` costs per hour, known as :meth:`draw_gpus` is; GPUs where machines cost
        nothing.
        """
        return self.draw_priced(price(evaluation))

    def draw_cheapest(self, kind: str) -> Floats | None:
        """``[n]`` costs of the deployment of a kind that is cheapest then."""
        of_kind = [one for one in self._met if self._space.kind(one.candidate.shape) == kind]
        drawn = [cost for one in of_kind if (cost := self.draw_costs(one)) is not None]
        return np.min(drawn, axis=0) if drawn else None

    def draw_priced(self, one: Priced | None) -> Floats | None:
        """``[n]`` costs of an evaluation at a cost, known as :meth:`draw_gpus` is."""
        if one is None:
            return None
        gpus = self.draw_gpus(one.evaluation, one.demand, one.rate, one.sizes)
        if gpus is None:
            return None
        own, shape = one.evaluation.cost_per_hour, one.evaluation.candidate.shape
        gpu_hour = 1.0 if self._is_free else self._space.machines_at(shape).gpu_hour
        return gpus * gpu_hour * (one.cost / own if 0 < own < math.inf else 1.0)


def find_band(values: Floats | None) -> Band:
    """10th and 90th percentile of values that were drawn; without ends where they are infinite, or
    where there are none.
    """
    if values is None or not len(values):
        return None, None
    low, high = (
        float(np.quantile(values, q, method=m))  # type: ignore[call-overload]
        for q, m in ((0.1, "lower"), (0.9, "higher"))
    )
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


def find_ratio_band(costs: Floats | None, others: Floats | None) -> Band:
    """Band of the ratio of two costs in the same samples."""
    return find_band(None if costs is None or others is None else divide_costs(costs, others))


def divide_costs(costs: Floats, others: Floats) -> Floats:
    """Ratios in the samples in which the others meet the targets; infinite where they alone do."""
    kept = np.isfinite(others) & (others > 0)
    return np.asarray(costs[kept] / others[kept])


def name_band(
    name: str, value: float | None, band: Iterable[float | None]
) -> dict[str, float | None]:
    """Keys of a figure's band, stretched to hold the figure.

    >>> name_band("gpus", 8.0, (9.0, None))
    {'gpus_low': 8.0, 'gpus_high': None}
    """
    low, high = band
    if value is None:
        return {}
    return {
        f"{name}_low": None if low is None else min(low, value),
        f"{name}_high": None if high is None else max(high, value),
    }


def widen_band(value: float, band: Edges, scatter: float) -> Edges:
    """A band that holds the value, with independent scatter either way; not below 0.

    >>> widen_band(10.0, (7.0, 12.0), 4.0)
    (5.0, 14.47213595499958)
    """
    below, above = max(0.0, value - band[0]), max(0.0, band[1] - value)
    return max(0.0, value - math.hypot(below, scatter)), value + math.hypot(above, scatter)


def round_up(gpus: Floats, sizes: tuple[int, ...]) -> Floats:
    """The next of ``sizes`` (rising); infinite beyond.

    >>> round_up(np.array([3.0, 4.0, 9.0]), (2, 4, 8))
    array([ 4.,  4., inf])
    """
    offered = np.array([*sizes, math.inf])
    return offered[np.searchsorted(offered, gpus * (1 - 1e-9))]


def count_share(is_so: NDArray[np.bool_], mine: Floats, theirs: Floats) -> float:
    """Share of the samples in which something is so; where both fail neither is better."""
    return float(
        (is_so & np.isfinite(mine)).mean() + (np.isinf(mine) & np.isinf(theirs)).mean() / 2
    )


def count_cheapest(costs: Floats) -> Floats:
    """``[m]`` share of samples in which each of ``[m, n]`` costs is the least; of those that are
    equal, the one listed first.

    Shares add up to 1 less the samples in which nothing meets the targets.

    >>> count_cheapest(np.array([[1.0, 3.0, np.inf], [1.0, 2.0, np.inf]]))
    array([0.33333333, 0.33333333])
    """
    best = np.argmin(costs, axis=0)
    some = np.isfinite(costs[best, np.arange(costs.shape[1])])
    return np.asarray(np.bincount(best[some], minlength=len(costs)) / costs.shape[1])


def count_none_cheaper(costs: Floats) -> Floats:
    """``[m]`` share of samples in which none of ``[m, n]`` costs less: those that are equal count
    each.

    >>> count_none_cheaper(np.array([[1.0, 3.0], [1.0, 2.0]]))
    array([0.5, 1. ])
    """
    return np.asarray((np.isfinite(costs) & (costs <= costs.min(axis=0))).mean(axis=1))
