"""Bands of every figure of an answer: 80 % of what the calibration's error and other samples make
of it.

``x_low`` and ``x_high`` beside a figure ``x`` hold it; ``None`` is an end that there is none of,
where no cluster within the limits would do or queues would grow without bound. Deployments that
were not simulated with the calibration off are estimated in closed form
(:mod:`~simulator.planner.estimate`); ``band`` says which. Probabilities are shares of
joint samples (:mod:`~simulator.planner.samples`): ``is_best_probability`` of those in
which a deployment is the cheapest, of which the one that the plan lists first is taken where
several cost the same, so that they add up to 1 less the samples in which nothing meets the targets;
``none_cheaper_probability`` of those in which nothing costs less, which counts all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.planner.calibration_error import Z_80, Edges, Floats
from simulator.planner.conditions import AS_ASKED, Change, Trials, describe_stretch
from simulator.planner.estimate import Estimate, Estimator
from simulator.planner.evaluations import FigureBands, row_of
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.losses import with_losses
from simulator.planner.samples import (
    CostSamples,
    GpuDemand,
    Priced,
    count_cheapest,
    count_none_cheaper,
    find_band,
    name_band,
    widen_band,
)
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult
from simulator.planner.trial import Outcome
from simulator.planner.uncertainty.confidence import RESAMPLED, FixedSize, band_figures
from simulator.results.answer import LossRow, SpareRow

SIMULATED, CLOSED = "simulated", "closed form"
_NEEDED = ("gpus", "cost_per_hour")
"""Figures of the cluster that would be needed, whose size is searched for in each sample."""
_PER_TOKEN = (
    "cost_per_million_output_tokens",
    "cost_per_million_tokens",
    "cost_joules_per_output_token",
)
"""Figures of the cluster as it is that tokens share."""
_BISECTIONS = 3
"""Bisections of how much later first tokens may come."""
_LATENCIES = ("tpot_s", "ttft_s", "e2e_s")
_SHARE = "attainment"
_TOKENS = "output_tokens_per_s"


def estimate_all(
    trials: Trials, evaluations: Sequence[Evaluation], rate_per_s: float
) -> list[Estimate | None]:
    """The closed form of each evaluation about all requests, with other samples.

    Args:
        rate_per_s: of all requests.
    """
    estimator = Estimator(trials, resamples=True)
    found = [estimator.estimate(evaluation, rate_per_s) for evaluation in evaluations]
    return [
        one and _add_attainment(one._replace(latest=_find_latest(evaluation)), trials, evaluation)
        for one, evaluation in zip(found, evaluations, strict=True)
    ]


def _find_latest(evaluation: Evaluation) -> float:
    worst = 0.0 if evaluation.outcome is None else evaluation.outcome.find_worst(("ttft",))
    return 1 / worst if worst else math.inf


def _add_attainment(estimate: Estimate, trials: Trials, evaluation: Evaluation) -> Estimate:
    """Add the shares of requests that keep their limits, where that is a target: at both ends of
    the band, and how much later first tokens may come.
    """
    size = evaluation.cluster_size
    if size is None or trials.space.question.targets.attainment is None:
        return estimate
    error = estimate.demand.error

    def measure(**change: float) -> Outcome:
        return trials.trial(evaluation.candidate, size, AS_ASKED._replace(**change))  # type: ignore[arg-type]

    fast, slow = (measure(slower=edge) for edge in error.edges)
    low, high = 1.0, max(1.0, error.bands.first_token[1])
    late = measure(later=high)
    for _ in range(0 if late.met else _BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if measure(later=middle).met else (low, middle)
    shares = [one.measured[_SHARE] for one in (fast, slow, late)]
    latest = estimate.latest if late.met else min(estimate.latest, math.sqrt(low * high))
    return estimate._replace(attainment=(shares[0], min(shares[1:])), latest=latest)


class RowBands:
    """Bands of the figures of every deployment that meets the targets."""

    def __init__(
        self,
        result: SearchResult,
        first: Candidate,
        tried: FixedSize,
        costs: CostSamples,
        estimates: Mapping[Candidate, Estimate | None],
    ) -> None:
        """Args: tried: the first choice at its size."""
        self._result, self._first, self._costs, self._estimates = result, first, costs, estimates
        self._figures = band_figures(costs.demands[first], tried)
        self._scatters = {
            name: scatter / self._figures[name].value
            for name, scatter in tried.scatters.items()
            if self._figures[name].value > 0
        }
        """Scatter between samples of the first choice's figures, as shares of them."""

    def band_row(self, evaluation: Evaluation) -> FigureBands:
        """Bands of one deployment's figures."""
        candidate, gpus = evaluation.candidate, self._costs.draw_gpus(evaluation)
        size = evaluation.size
        if size is None or gpus is None:
            return FigureBands()
        row, (low, high) = row_of(self._result, evaluation).model_dump(), find_band(gpus)
        estimate, bands = self._estimates.get(candidate), dict[str, float | None]()
        for name in _NEEDED:
            ends = (None if end is None else row[name] * end / size for end in (low, high))
            bands |= name_band(f"needed_{name}", row[name], ends)
        if candidate == self._first:
            bands |= self._band_tried(row)
        elif estimate is not None:
            bands |= self._band_latencies(row, estimate)
        if _SHARE in row and estimate and estimate.attainment and f"{_SHARE}_low" not in bands:
            bands |= name_band(_SHARE, row[_SHARE], self._widen(row, _SHARE, estimate.attainment))
        if (most := bands.get(f"{_SHARE}_high")) is not None:
            bands[f"{_SHARE}_high"] = min(1.0, most)
        if f"{_TOKENS}_low" not in bands:
            made, spread = row[_TOKENS], row[_TOKENS] * self._scatters.get(_TOKENS, 0.0)
            bands |= name_band(_TOKENS, made, (max(0.0, made - spread), made + spread))
        made = [bands[f"{_TOKENS}_{end}"] or row[_TOKENS] for end in ("low", "high")]
        per_gpu = row[f"{_TOKENS}_per_gpu"]
        bands |= name_band(f"{_TOKENS}_per_gpu", per_gpu, (end / size for end in made))
        for name in _PER_TOKEN:
            ends = (row[name] * row[_TOKENS] / end if end else None for end in reversed(made))
            bands |= name_band(name, row[name], ends)
        is_closed = self._costs.demands[candidate].by_resample
        return FigureBands(CLOSED if is_closed else SIMULATED, bands)

    def _band_tried(self, row: Mapping[str, Any]) -> dict[str, float | None]:
        """Bands of the first choice, those of the stretch that was looked at scaled to all
        requests.
        """
        bands: dict[str, float | None] = {}
        for name, one in self._figures.items():
            if row.get(name) is not None and one.value > 0 and one.band is not None:
                ends = (row[name] * (end / one.value) for end in one.band)
                bands |= name_band(name, row[name], ends)
        return bands

    def _band_latencies(
        self, row: Mapping[str, Any], estimate: Estimate
    ) -> dict[str, float | None]:
        bands: dict[str, float | None] = {}
        for name in (name for name in row if name.startswith(_LATENCIES)):
            low, high = estimate.factors[name.split(".")[0]]
            band = self._widen(row, name, (row[name] * low, row[name] * high))
            ends = (end if math.isfinite(end) else None for end in band)
            bands |= name_band(name, row[name], ends)
        return bands

    def _widen(self, row: Mapping[str, Any], name: str, band: Edges) -> Edges:
        value = row[name]
        return widen_band(value, (min(band), max(band)), value * self._scatters.get(name, 0.0))


def add_probabilities(
    bands: dict[Candidate, FigureBands], met: Sequence[Evaluation], costs: CostSamples
) -> dict[Candidate, FigureBands]:
    """Add how likely each deployment is the cheapest of all.

    Args:
        bands: of each of ``met``.
    """
    drawn = {one.candidate: costs.draw_costs(one) for one in met}
    known = {candidate: cost for candidate, cost in drawn.items() if cost is not None}
    if not known:
        return bands
    together = np.array(list(known.values()))
    shares = zip(count_cheapest(together), count_none_cheaper(together), strict=True)
    return bands | {
        candidate: bands[candidate]._replace(
            is_best_probability=float(best), none_cheaper_probability=float(least)
        )
        for candidate, (best, least) in zip(known, shares, strict=True)
    }


def band_losses(
    trials: Trials, candidate: Candidate, cluster_size: ClusterSize, demand: GpuDemand
) -> list[LossRow]:
    """Rows of :func:`~simulator.planner.losses.with_losses` with bands: of the calibration's ends,
    and of other samples.
    """

    def lose(change: Change) -> list[LossRow]:
        return with_losses(replace(trials, default=change), candidate, cluster_size)

    nearest = (
        min(demand.slower, key=lambda factor, edge=edge: abs(factor - edge))  # type: ignore[misc]
        for edge in demand.error.edges
    )
    slowed = [lose(Change(slower=factor)) for factor in dict.fromkeys(nearest)]
    resampled = [lose(change) for change in RESAMPLED]
    rows, note = with_losses(trials, candidate, cluster_size), describe_stretch(trials, candidate)
    for n, row in enumerate(rows):
        changes: dict[str, Any] = {"note": note}
        for name in ("goodput_per_s", _SHARE):
            value = getattr(row, name)
            if value is None:
                continue
            edges, drawn = (
                [value, *(one for other in others if (one := getattr(other[n], name)) is not None)]
                for others in (slowed, resampled)
            )
            low, high = widen_band(value, (min(edges), max(edges)), Z_80 * float(np.std(drawn)))
            changes |= name_band(name, value, (low, min(1.0, high) if name == _SHARE else high))
        rows[n] = row.model_copy(update=changes)
    return rows


def band_spare_nodes(
    rows: Sequence[SpareRow], found: Sequence[Priced], costs: CostSamples
) -> list[SpareRow]:
    """Bands of rows of :func:`~simulator.planner.losses.spare_nodes`.

    Args:
        found: by row.
    """
    banded: list[SpareRow] = []
    base: Floats | None = None
    for row, one in zip(rows, found, strict=True):
        gpus = costs.draw_gpus(one.evaluation, rate=one.rate)
        drawn = costs.draw_priced(one)
        base = base if banded else drawn
        extra = None
        if drawn is not None and base is not None:
            both = np.isfinite(drawn) & np.isfinite(base)
            extra = drawn[both] - base[both]
        bands = {
            **name_band("gpus", row.gpus, find_band(gpus)),
            **name_band("cost_per_hour", row.cost_per_hour or None, find_band(drawn)),
            **name_band("extra_cost_per_hour", row.extra_cost_per_hour or None, find_band(extra)),
        }
        banded.append(row.model_copy(update=bands))
    return banded
