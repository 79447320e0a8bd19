"""Calibration error of one deployment: how far off its seconds may be, and what it shares with
others.

The error is one factor on all of a step's seconds, log-normal with the band of measured over
predicted times per token of the serving engine (whole models and GPUs left out of the fit). It is
made up of a factor for each term of the step (weights, products, cache, ...), all equally
uncertain. Two deployments share half of the variance of a term that the same kernels of the same
engine on the same family of accelerators compute, and err together as far as these terms make up
their steps; the other half is each one's own.

That is held against measured serving points (``python tests/validation/test_order_probabilities.py
TABLE``; 1,483 points of three engines on three GPUs, in 15,759 pairs of the same lengths and load;
most are in the fits). Deployments said to be faster with a probability of 55, 65, 75, 86, 93 and 97
% are in 53, 63, 71, 86, 91 and 96 % of cases, Brier score 0.054, and the 80 % band of the ratio of
two times per token holds 79 % of the ratios. Of one engine, GPU and model it holds 85 %; it would
56 % were all shared, and 90 % were nothing.
"""

from __future__ import annotations

import math
import statistics
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.calibration import Fit
from simulator.config.host import HostRates
from simulator.deployment.fits import find_bands, fits_of, list_unseen
from simulator.deployment.memory import start_probability
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.analytical import Terms
from simulator.planner.trial import Outcome

Floats = NDArray[np.float64]
Edges = tuple[float, float]
"""10th and 90th percentile."""

ASSUMED: Edges = (0.5, 2.0)
"""Band where nothing was measured: a factor of two either way."""
SHARED = 0.5
"""Share of the variance of a term's error that the same kernels have in common wherever they
run."""
Z_80 = 1.2816
"""Standard deviations either way that hold 80 %."""
_OF_MEDIAN = 0.6745
"""Standard deviations within which half of all errors lie."""
MACHINE_ERRORS = (0.10, 0.18)
"""Median errors of whole layers of mixtures that were predicted and timed on one machine, from its
best calibration to its worst (``tests/benchmarks/twin.py``): a machine's steps are held to be no
surer than the first, and assumed to be as the second where no fit states an error."""


class LatencyBands(NamedTuple):
    """Bands of measured over predicted latencies of one deployment."""

    token: Edges
    """Band of the time per token."""
    first_token: Edges
    """Band of the time to first token."""
    source: str


class CalibrationError(NamedTuple):
    """Distribution of measured over predicted seconds of one deployment's steps."""

    bands: LatencyBands
    parts: dict[str, float]
    """Share of the step by whose error it is."""
    own: str = ""
    """Name of the error that is not its kernels', see :func:`name_deployment`; empty = nobody's,
    all is shared."""

    @property
    def middle(self) -> float:
        """Mean of the logarithm of measured over predicted seconds."""
        return math.log(self.bands.token[0] * self.bands.token[1]) / 2

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm of measured over predicted seconds."""
        return math.log(self.bands.token[1] / self.bands.token[0]) / 2 / Z_80

    @property
    def edges(self) -> Edges:
        """Band of the time per token, stretched to 1 where the fit is biased: what was predicted
        lies within its own band.
        """
        return include_one(self.bands.token)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each error in the whole, all terms equally uncertain: squares add up to 1,
        whatever the step is made of.

        >>> bands = LatencyBands((1.0, 1.0), (1.0, 1.0), "")
        >>> CalibrationError(bands, {"weights": 0.6, "cache": 0.8}).weights
        {'weights': 0.6, 'cache': 0.8}
        """
        own = self.own
        scale = math.sqrt(sum(part**2 for part in self.parts.values()) / (SHARED if own else 1.0))
        return {name: part / scale for name, part in self.parts.items()} | (
            {own: math.sqrt(1 - SHARED)} if own else {}
        )

    def shift_first_token(self, score: Floats) -> Floats:
        """Logarithm of measured over predicted time to first token, so many standard deviations
        off.
        """
        middle, spread = _describe_logs(self.bands.first_token)
        return middle + spread * score


def _describe_logs(band: Edges) -> tuple[float, float]:
    """Mean and standard deviation of a log-normal factor's logarithm, by the factor's band."""
    low, high = (math.log(edge) for edge in band)
    return (low + high) / 2, (high - low) / 2 / Z_80


def include_one(band: Edges) -> Edges:
    """A band of factors, stretched to hold 1.

    >>> include_one((0.8, 1.1)), include_one((1.02, 1.4))
    ((0.8, 1.1), (1.0, 1.4))
    """
    return min(band[0], 1.0), max(band[1], 1.0)


def read_bands(plan: DeploymentPlan, is_pooled: bool) -> LatencyBands:
    """The bands of the engine, or of its pools of prefill and decode, where these are known; of a
    machine's own calibration those of its kernels, see :func:`_read_machine_bands`.

    Args:
        is_pooled: whether prompts have a pool of their own, which the plan of one replica does not
            say.
    """
    if isinstance(plan.placement.calibration, HostRates):
        return _read_machine_bands(plan)
    fit, pools = plan.placement.calibration.engine, plan.placement.calibration.pools
    if is_pooled and pools is not None:
        token, first_token = _read_band(pools.band, pools), _read_band(pools.ttft_band, pools)
        return LatencyBands(token, first_token, pools.source)
    unseen = list_unseen(plan)
    bands, why = find_bands(fit, unseen), "".join(f"; {one}" for one in unseen.values())
    return LatencyBands(bands.band, bands.ttft_band, f"{fit.source}{why}")


def _read_band(band: Edges | None, fit: Fit) -> Edges:
    """A fit's band; :data:`ASSUMED` where nothing was measured."""
    return ASSUMED if band is None or fit.kind == "assumed" else band


def _read_machine_bands(plan: DeploymentPlan) -> LatencyBands:
    """The band of steps on a machine: log-normal with the median errors that the fits of its
    kernels state, as if each made an equal part of the step and erred by itself, and with the
    spread of the machine's times, which is that of all of them at once; no less than
    :data:`MACHINE_ERRORS`, which stand for them where none states one. A first token is some steps.
    """
    fits = fits_of(plan).values()
    source = plan.placement.calibration.engine.source
    if any(fit.kind == "assumed" for fit in fits):
        return LatencyBands(ASSUMED, ASSUMED, source)
    known = [fit.median_error for fit in fits if fit.median_error is not None]
    spread = statistics.median([fit.spread for fit in fits if fit.spread is not None] or [0.0])
    least, assumed = MACHINE_ERRORS
    own = math.hypot(*known) / len(known) if known else assumed
    error = max(least, math.hypot(own, _OF_MEDIAN * spread))
    how = "from the errors of its kernels" if known else "assumed"
    wide = math.exp(Z_80 * error / _OF_MEDIAN)
    band = (1 / wide, wide)
    return LatencyBands(band, band, f"median error of a step {error:.0%}, {how}: {source}")


def read_error(plan: DeploymentPlan, seconds: Floats, is_pooled: bool) -> CalibrationError:
    """The error of a deployment whose typical step is known.

    Args:
        seconds: ``[8]`` of the step's :class:`~simulator.planner.analytical.Terms`.
        is_pooled: as of :func:`read_bands`.
    """
    total = float(np.cumsum(seconds)[-1])
    parts = {
        name: float(part) / total
        for name, part in zip(name_kernels(plan), seconds, strict=True)
        if part > 0
    }
    return CalibrationError(read_bands(plan, is_pooled), parts, name_deployment(plan))


def name_kernels(plan: DeploymentPlan) -> tuple[str, ...]:
    """For each of :class:`~simulator.planner.analytical.Terms` the kernels that compute it:
    deployments with the same name err together there.
    """
    placement = plan.placement
    formats, experts = placement.precision, ""
    if placement.model.moe is not None:
        experts = f" of {placement.model.name}"
    spans_nodes = placement.layout.num_gpus > placement.cluster.gpus_per_node
    wires = "nodes" if spans_nodes else "one node"
    kernels = {
        "weights": f"{formats.weights} {formats.experts}{experts}",
        "products": f"{formats.weights} {formats.experts}{experts}",
        "cache": formats.kv,
        "prompts": formats.kv,
        "waiting": placement.model.name,
        "exchanges": wires,
        "all_reduces": wires,
    }
    where = f"{placement.accelerator.calibration} {plan.spec.engine}"
    return tuple(f"{term} {kernels.get(term, '')} {where}" for term in Terms._fields)


def name_deployment(plan: DeploymentPlan) -> str:
    """Name of a deployment's own error: the same where only the cache's format or the batching
    differ.
    """
    placement = plan.placement
    layout, formats = placement.layout, placement.precision
    split = f"TP {layout.tp} DP {layout.attention_dp} EP {layout.ep} PP {layout.pp}"
    return (
        f"{placement.model.name} {formats.weights} {formats.experts} {split} "
        f"{placement.accelerator.name} {plan.spec.engine}"
    )


class RatioBand(NamedTuple):
    """A ratio's 80 % band, and the probability that it is above 1; ``None`` where there is no
    telling.
    """

    low: float | None
    high: float | None
    above: float | None


def compare_speeds(
    ratio: float,
    first: CalibrationError,
    second: CalibrationError,
    elasticities: tuple[float, float] = (1.0, 1.0),
) -> RatioBand:
    """The band of a ratio of two deployments' tokens a second: what both rest on cancels. Errors
    are normal in logarithms, so nothing has to be drawn.

    Args:
        ratio: predicted tokens of the first over those of the second.
        elasticities: by how many per cent fewer tokens each makes where its steps take one per cent
            longer; infinite where there may be none.

    >>> bands = LatencyBands((math.exp(-0.1 * Z_80), math.exp(0.1 * Z_80)), (1.0, 1.0), "")
    >>> alone, apart = (CalibrationError(bands, {name: 1.0}) for name in "ab")
    >>> compare_speeds(1.0, alone, alone)
    RatioBand(low=1.0, high=1.0, above=0.5)
    >>> [round(value, 3) for value in compare_speeds(1.1, alone, apart)]
    [0.918, 1.319, 0.75]
    """
    if not all(map(math.isfinite, elasticities)):
        return RatioBand(None, None, None)
    one, other = (
        gives * error.spread for gives, error in zip(elasticities, (first, second), strict=True)
    )
    weights = second.weights
    shared = sum(weight * weights.get(name, 0.0) for name, weight in first.weights.items())
    variance = one**2 + other**2 - 2 * one * other * shared
    middle = math.log(ratio) - elasticities[0] * first.middle + elasticities[1] * second.middle
    spread = math.sqrt(variance) if variance > 1e-12 else 0.0  # what is left of rounding
    low, high = (math.exp(middle + z * spread) for z in (-Z_80, Z_80))
    above = (
        0.5 * (1 + math.erf(middle / spread / math.sqrt(2)))
        if spread
        else 0.5 * (1 + float(np.sign(round(middle, 9))))
    )
    return RatioBand(min(low, ratio), max(high, ratio), above)


def compute_start_probability(plan: DeploymentPlan, longest_tokens: int) -> float:
    """Probability that all pools start: that each one's KV cache holds the longest request."""
    return math.prod(
        start_probability(pool.serving.capacity, longest_tokens) for pool in plan.pools
    )


def compute_miss_probability(plan: DeploymentPlan, outcome: Outcome, longest_tokens: int) -> float:
    """Probability that a deployment which meets the targets in simulation does not start, or misses
    the target which is most at risk.

    Measured over simulated is taken as log-normal with the 80 % bands of the engine's fit, or of
    the pools' where prompts have their own: of the time to first token for targets on that, of the
    time per token for all others.
    """
    bands = read_bands(plan, plan.prefill is not None)
    missed = 0.0
    for name, ratio in outcome.ratios.items():
        middle, spread = _describe_logs(
            bands.first_token if name.startswith("ttft_s") else bands.token
        )
        if ratio > 0 and spread > 0:
            missed = max(missed, 1.0 - NormalDist().cdf((-math.log(ratio) - middle) / spread))
    return 1.0 - compute_start_probability(plan, longest_tokens) * (1.0 - missed)
