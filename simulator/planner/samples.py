"""Joint draws of what the calibration may be off, and of which sample of requests comes: what
everything that is compared shares.

The calibration's error is one factor on all of a step's seconds, log-normal with the band of
measured over predicted times per token of the serving engine (whole models and GPUs left out of the
fit). It is made up of a factor for each term of the step (weights, products, cache, ...), all
equally uncertain. Two deployments share half of the variance of a term that the same kernels of the
same engine on the same family of accelerators compute, and err together as far as these terms make
up their steps; the other half is each one's own.

That is held against measured serving points (``python tests/validation/test_order_probabilities.py
TABLE``; 1,483 points of three engines on three GPUs, in 15,759 pairs of the same lengths and load;
most are in the fits). Deployments said to be faster with a probability of 55, 65, 75, 86, 93 and 97
% are in 53, 63, 71, 86, 91 and 96 % of cases, Brier score 0.054, and the 80 % band of the ratio of
two times per token holds 79 % of the ratios. Of one engine, GPU and model it holds 85 %; it would
56 % were all shared, and 90 % were nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.streams import open_stream
from simulator.config.calibration import Fit
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.closed_form import Terms

Floats = NDArray[np.float64]

ASSUMED = (0.5, 2.0)
"""Where nothing was measured: a factor of two either way."""
DRAWS = (1, 2, 3)
"""Other samples of requests and of experts' choices."""
NUM_DRAWS = 4000
SHARED = 0.5
"""Of the variance of a term's error, what the same kernels have in common wherever they run."""
Z_80 = 1.2816
"""Standard deviations either way that hold 80 %."""


class Table(NamedTuple):
    """What one deployment needs if steps take so many times as long."""

    band: tuple[float, float]
    """10th and 90th percentile of measured over predicted time per token."""
    ttft_band: tuple[float, float]
    source: str
    parts: dict[str, float]
    """Share of the step by whose error it is."""
    slower: list[float]
    """Rising."""
    gpus: list[int]
    """Of the smallest cluster; 0 where not even the largest meets the targets."""
    noise: tuple[float, ...] = ()
    """GPUs with each of :data:`DRAWS` over those with the sample asked for; empty = the same."""
    by_sample: tuple[list[int], ...] = ()
    """``gpus`` with each of :data:`DRAWS`, where that was tabulated instead."""
    own: str = ""
    """Whose error it has that is not its kernels', see :func:`own_of`; empty = nobody's, all is
    shared."""

    @property
    def middle(self) -> float:
        """Of the logarithm of the factor, likewise."""
        return math.log(self.band[0] * self.band[1]) / 2

    @property
    def spread(self) -> float:
        """Its standard deviation."""
        return math.log(self.band[1] / self.band[0]) / 2 / Z_80

    @property
    def edges(self) -> tuple[float, float]:
        """The band, stretched to 1 where the fit is biased: what was predicted lies within its own
        band.
        """
        return around_one(self.band)


def around_one(band: tuple[float, float]) -> tuple[float, float]:
    """A band of factors that holds 1.

    >>> around_one((0.8, 1.1)), around_one((1.02, 1.4))
    ((0.8, 1.1), (1.0, 1.4))
    """
    return min(band[0], 1.0), max(band[1], 1.0)


class LatencyBands(NamedTuple):
    """80 % of measured over predicted latencies of one deployment."""

    token: tuple[float, float]
    """Edges of the band of the time per token."""
    first_token: tuple[float, float]
    """Edges of the band of the time to first token."""
    source: str


def bands_of(plan: DeploymentPlan, is_pooled: bool) -> LatencyBands:
    """The bands of the engine, or of its pools of prefill and decode, where these are known.

    Args:
        is_pooled: whether prompts have a pool of their own, which a plan in closed form does not
            say.
    """
    pools = plan.placement.calibration.pools if is_pooled else None
    fit = pools or plan.placement.calibration.engine
    return LatencyBands(_measured(fit.band, fit), _measured(fit.ttft_band, fit), fit.source)


def _measured(band: tuple[float, float] | None, fit: Fit) -> tuple[float, float]:
    """A fit's band; :data:`ASSUMED` where nothing was measured."""
    return ASSUMED if band is None or fit.kind == "assumed" else band


def kernels_of(plan: DeploymentPlan) -> tuple[str, ...]:
    """For each of :class:`~simulator.planner.closed_form.Terms`, whose error it has: deployments
    with the same name err together there.
    """
    placement = plan.placement
    experts = "" if placement.model.moe is None else f" of {placement.model.name}"
    formats, wires = (
        placement.precision,
        "nodes" if placement.layout.num_gpus > placement.cluster.gpus_per_node else "one node",
    )
    apart = {
        "weights": f"{formats.weights} {formats.experts}{experts}",
        "products": f"{formats.weights} {formats.experts}{experts}",
        "cache": formats.kv,
        "prompts": formats.kv,
        "waiting": placement.model.name,
        "exchanges": wires,
        "all_reduces": wires,
        "host": "",
    }
    return tuple(
        f"{name} {apart.get(name, '')} {placement.accelerator.calibration} {plan.spec.engine}"
        for name in Terms._fields
    )


def own_of(plan: DeploymentPlan) -> str:
    """What names a deployment's own error: of what differs in its cache's format or its batching
    only, it is the same.
    """
    placement = plan.placement
    layout, formats = placement.layout, placement.precision
    split = f"TP {layout.tp} DP {layout.attention_dp} EP {layout.ep} PP {layout.pp}"
    return (
        f"{placement.model.name} {formats.weights} {formats.experts} {split} "
        f"{placement.accelerator.name} {plan.spec.engine}"
    )


def loading(parts: Mapping[str, float], own: str = "") -> dict[str, float]:
    """How far each error moves the whole, all terms equally uncertain: squares add up to 1,
    whatever the step is made of.

    Args:
        own: the name of a deployment's own error.

    >>> loading({"weights": 0.6, "cache": 0.8})
    {'weights': 0.6, 'cache': 0.8}
    """
    scale = math.sqrt(sum(share**2 for share in parts.values()) / (SHARED if own else 1.0))
    return {name: share / scale for name, share in parts.items()} | (
        {own: math.sqrt(1 - SHARED)} if own else {}
    )


def first_token_off(table: Table, score: Floats) -> Floats:
    """Logarithm of measured over predicted time to first token, so many standard deviations off."""
    low, high = (math.log(edge) for edge in table.ttft_band)
    return (low + high) / 2 + (high - low) / 2 / Z_80 * score


class Draws:
    """The same numbers for everything that is compared; another question's seed gives others."""

    def __init__(self, seed: int, count: int = NUM_DRAWS) -> None:
        self._seed = seed
        self.count = count
        self._normals: dict[str, Floats] = {}
        self.sample = self._stream("samples").integers(len(DRAWS) + 1, size=count)
        """``[n]``: which sample of requests comes; 0 is the one that was asked for."""

    def _stream(self, name: str) -> np.random.Generator:
        return open_stream(self._seed, f"confidence {name}")

    def _normal(self, name: str) -> Floats:
        if name not in self._normals:
            self._normals[name] = self._stream(name).standard_normal(self.count)
        return self._normals[name]

    def score(self, table: Table) -> Floats:
        """``[n]`` standard deviations that a deployment's steps are off."""
        total = np.zeros(self.count)
        for name, weight in loading(table.parts, table.own).items():
            total += weight * self._normal(name)
        return total

    def slowness(self, table: Table) -> Floats:
        """``[n]`` measured over predicted."""
        return np.exp(table.middle + table.spread * self.score(table))

    def gpus(self, table: Table, sizes: tuple[int, ...]) -> Floats:
        """``[n]`` GPUs that are needed; infinite where nothing meets the targets.

        Args:
            sizes: that the cluster comes in, rising.
        """
        slower = self.slowness(table)
        if not table.by_sample:
            as_slow = np.array(
                [
                    (1.0, 1.0),
                    *(_as_slow(table, ratio) for ratio in table.noise or (1.0,) * len(DRAWS)),
                ]
            )
            return np.asarray(
                gpus_at(table, sizes, slower * as_slow[self.sample, 0]) * as_slow[self.sample, 1]
            )
        found = np.empty(self.count)
        for number, gpus in enumerate((table.gpus, *table.by_sample)):
            here = self.sample == number
            found[here] = gpus_at(table._replace(gpus=gpus), sizes, slower[here])
        return found


def _as_slow(table: Table, ratio: float) -> tuple[float, float]:
    """How many times as long steps would have to take for a deployment to need ``ratio`` times the
    GPUs.

    A sample that is harder counts as that: the two together need what the sum of both needs, not
    one rounded size times another.

    Returns:
        That factor, and 1; or 1 and ``ratio``, where nothing that was tried needs so many.
    """
    place = table.slower.index(1.0)
    wanted = table.gpus[place] * ratio
    if ratio > 1:
        beyond = next(
            (n for n in range(place + 1, len(table.gpus)) if table.gpus[n] >= wanted), None
        )
        return (
            (1.0, ratio)
            if beyond is None
            else (math.sqrt(table.slower[beyond - 1] * table.slower[beyond]), 1.0)
        )
    if ratio < 1:
        beyond = next((n for n in reversed(range(place)) if 0 < table.gpus[n] <= wanted), None)
        return (
            (1.0, ratio)
            if beyond is None
            else (math.sqrt(table.slower[beyond + 1] * table.slower[beyond]), 1.0)
        )
    return 1.0, 1.0


def gpus_at(table: Table, sizes: tuple[int, ...], slower: Floats) -> Floats:
    """GPUs needed if steps take so many times as long: between what was tried, the next size there
    is. Never fewer if slower.
    """
    needed = np.maximum.accumulate(
        np.array([number or math.inf for number in table.gpus], dtype=np.float64)
    )
    tried = np.log(table.slower)
    at = np.log(slower)
    known = np.isfinite(needed)
    if not known.any():
        return np.full(len(slower), np.inf)
    between = np.interp(at, tried[known], needed[known])
    held = np.array(sizes, dtype=np.float64)
    rounded = held[np.minimum(np.searchsorted(held, between * (1 - 1e-9)), len(held) - 1)]
    last = int(known.sum()) - 1
    limit = (tried[last] + tried[last + 1]) / 2 if last + 1 < len(tried) else math.inf
    return np.where(at <= limit, rounded, np.inf)


def band_of(values: Floats) -> tuple[float | None, float | None]:
    """10th and 90th percentile, of values that were drawn; ``None`` where infinite, or where there
    are none.
    """
    if not len(values):
        return None, None
    low, high = (
        float(np.quantile(values, q, method=m))  # type: ignore[call-overload]
        for q, m in ((0.1, "lower"), (0.9, "higher"))
    )
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


def share(is_so: NDArray[np.bool_], mine: Floats, theirs: Floats) -> float:
    """Of the draws; where both fail neither is better."""
    return float(
        (is_so & np.isfinite(mine)).mean() + (np.isinf(mine) & np.isinf(theirs)).mean() / 2
    )


def firsts(costs: Floats) -> Floats:
    """``[m]`` share of draws in which each of ``[m, n]`` costs is the least; of those that are
    equal, the one listed first.

    Shares add up to 1 less the draws in which nothing meets the targets.

    >>> firsts(np.array([[1.0, 3.0, np.inf], [1.0, 2.0, np.inf]]))
    array([0.33333333, 0.33333333])
    """
    best = np.argmin(costs, axis=0)
    some = np.isfinite(costs[best, np.arange(costs.shape[1])])
    return np.asarray(np.bincount(best[some], minlength=len(costs)) / costs.shape[1])


def none_cheaper(costs: Floats) -> Floats:
    """``[m]`` share of draws in which none of ``[m, n]`` costs less: those that are equal count
    each.

    >>> none_cheaper(np.array([[1.0, 3.0], [1.0, 2.0]]))
    array([0.5, 1. ])
    """
    return np.asarray((np.isfinite(costs) & (costs <= costs.min(axis=0))).mean(axis=1))
