"""Bands of every figure of an answer, and probabilities that the choice is right: 80 % of what the
calibration's error and other samples make of it.

The few deployments that are compared most closely are simulated with the calibration off by what it
may be off (:mod:`~simulator.planner.calibration_error`), and with other samples of requests and of
experts' choices; all others are estimated analytically (:mod:`~simulator.planner.estimate`);
``band`` says which. ``x_low`` and ``x_high`` beside a figure ``x`` hold it; ``None`` is an end that
there is none of, where no cluster within the limits would do or queues would grow without bound.

Probabilities are shares of joint samples (:mod:`~simulator.planner.samples`):
``is_best_probability`` of those in which a deployment is the cheapest, of which the one that the
plan lists first is taken where several cost the same, so that they add up to 1 less the samples in
which nothing meets the targets; ``none_cheaper_probability`` of those in which nothing costs less,
which counts all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.planner.analytical import Curve
from simulator.planner.calibration_error import Z_80, Edges, Floats, compute_start_probability
from simulator.planner.conditions import AS_ASKED, WHOLE, Change, Trials, describe_stretch
from simulator.planner.estimate import Estimate, Estimator, estimate_candidate_error
from simulator.planner.evaluations import FigureBands, row_of, text_of
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.headroom import COARSE_STEP, LEAST, Headroom, Slowness, measure_headroom
from simulator.planner.losses import with_losses
from simulator.planner.samples import (
    RESAMPLES,
    CostSamples,
    ErrorSamples,
    GpuDemand,
    Priced,
    count_cheapest,
    count_none_cheaper,
    count_share,
    find_band,
    name_band,
    widen_band,
)
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult
from simulator.planner.trial import Outcome
from simulator.results.answer import LossRow, SpareRow
from simulator.results.answer.certainty import Confidence, FigureBand, Source
from simulator.results.answer.deployments import BACKLOG
from simulator.workload.requests import longest_tokens

_FAR = 2.3
"""Standard deviations at which a fixed size is tried, besides those at which demand is simulated:
the ends of the band."""
_BISECTIONS = 2
"""Bisections between the slowest calibration that meets the targets and the first that does not."""
_KNEE_BISECTIONS = 4
"""Bisections between the slowest calibration that a fixed size stands and the next one that was
tried."""
RESAMPLED: tuple[Change, ...] = tuple(Change(resample=number) for number in RESAMPLES)
"""Changes of nothing but the sample of requests and of the experts' choices."""
_SHARES = ("attainment", BACKLOG)
"""Targets whose ratios are shares of requests."""
_LEAST_RATIO = 1e-9
"""Measured over limit at the least, so that it has a logarithm."""
_METHOD = (
    Source(
        name="errors in common",
        text="Deployments that run the same kernels of one engine on one family of GPUs share half "
        "of the variance of each part of a step; the rest is each one's own",
    ),
    Source(
        name="closed form",
        text="Only the first choices are simulated with the calibration off and with other "
        "samples; bands of all others are estimated from the average load, "
        "without other choices of experts",
    ),
)
"""Sentences on how bands are made."""


def simulate_demand(trials: Trials, candidate: Candidate, resamples: bool = False) -> GpuDemand:
    """GPUs that a deployment needs over what its calibration may be off.

    Args:
        resamples: whether other samples of requests count.
    """

    def count(change: Change) -> float:
        needed = trials.find(candidate, change).needed
        return needed if math.isfinite(needed) else 0.0

    opened = trials.open_explorer(candidate)
    plan = opened.plan(ClusterSize(0, 1, 1 if candidate.prefill is not None else 0))
    error = estimate_candidate_error(Curve(plan, opened.traffic, candidate.budget), candidate)
    slower = sorted({1.0, *error.bands.token})
    gpus = [count(Change(slower=factor)) for factor in slower]
    for _ in range(_BISECTIONS):
        edge = next((n for n in range(1, len(slower)) if gpus[n - 1] and not gpus[n]), None)
        if edge is None:
            break
        slower.insert(edge, math.sqrt(slower[edge - 1] * slower[edge]))
        gpus.insert(edge, count(Change(slower=slower[edge])))
    demand = GpuDemand(error, slower, gpus)
    if not resamples:
        return demand
    needed = [count(change) for change in RESAMPLED]
    return demand._replace(noise=_compare_samples(demand.base, needed))


def _compare_samples(base: float, needed: list[float]) -> tuple[float, ...]:
    """GPUs that are needed with other samples over those with the one asked for.

    Infinite with a sample for which no size is enough; 1 where there is none for the one asked for.
    """
    return tuple((one or math.inf) / base if base else 1.0 for one in needed)


class FixedSize(NamedTuple):
    """Trials of a deployment at the size that was found for it."""

    slowed: dict[float, Outcome]
    """Outcomes by factor on the steps' seconds, as of its demand."""
    later: dict[float, Outcome]
    """Outcomes by factor on the seconds to first token, rising from 1; of a target on requests
    that keep several limits."""
    resampled: tuple[Outcome, ...]
    """Outcomes with each of :data:`RESAMPLES`."""
    headroom: Headroom
    headrooms: tuple[float, ...]
    """Times the traffic that it carries, of the requests as asked and with each of
    :data:`RESAMPLES`."""
    headroom_ends: Edges
    """Times the traffic that it carries at the fast and at the slow end of the calibration's
    bands."""

    @property
    def scatters(self) -> dict[str, float]:
        """80 % of a figure's scatter between samples, either way."""
        return {
            name: Z_80
            * float(np.std([value, *(list_figures(one)[name] for one in self.resampled)]))
            for name, value in list_figures(self.slowed[1.0]).items()
        }


def _choose_nearest(tried: Iterable[float], factor: float) -> float:
    return min(tried, key=lambda one: abs(one - factor))


def list_figures(outcome: Outcome) -> dict[str, float]:
    """Figures of an outcome that users see."""
    figures = {"output_tokens_per_s": outcome.output_tokens_per_s} | outcome.measured
    return {name: value for name, value in figures.items() if name != BACKLOG}


def try_fixed_size(
    trials: Trials, candidate: Candidate, size: ClusterSize, demand: GpuDemand
) -> FixedSize:
    """Try a deployment at its size with slower steps and other samples."""

    def find_knee(name: str, factors: list[float]) -> dict[float, Outcome]:
        """Outcomes by factor, with some more between the last one that meets the targets and the
        first that does not.
        """

        def try_factor(factor: float) -> Outcome:
            change = Change(slower=factor) if name == "slower" else Change(later=factor)
            return trials.trial(candidate, size, change)

        known = {factor: try_factor(factor) for factor in factors}
        for _ in range(_KNEE_BISECTIONS):
            knee = next((n for n in pairwise(sorted(known)) if not known[n[1]].met), None)
            if knee is None or not known[knee[0]].met:
                break
            factor = math.sqrt(knee[0] * knee[1])
            known[factor] = try_factor(factor)
        return dict(sorted(known.items()))

    error = demand.error
    far = [math.exp(error.middle + z * error.spread) for z in (-_FAR, _FAR)]
    slowed = find_knee("slower", [*demand.slower, *far])
    later = {1.0: slowed[1.0]}
    if "attainment" in slowed[1.0].ratios:
        shifts = np.exp(error.shift_first_token(np.array([0.0, Z_80, _FAR])))
        later = find_knee("later", [1.0, *shifts[shifts > 1].tolist()])
    headroom = measure_headroom(trials, candidate, size)
    near = max(headroom.factor, LEAST)
    bands, found = demand.error.bands, [headroom.factor]
    for change in RESAMPLED:
        other = replace(trials, default=change)
        found.append(measure_headroom(other, candidate, size, near=near).factor)
    ends = [Slowness(*end) for end in zip(bands.token, bands.first_token, strict=True)]
    fast, slow = (measure_headroom(trials, candidate, size, end, near / end.step) for end in ends)
    resampled = tuple(trials.trial(candidate, size, change) for change in RESAMPLED)
    return FixedSize(slowed, later, resampled, headroom, tuple(found), (fast.factor, slow.factor))


class Choices(NamedTuple):
    """The choices that are compared most closely."""

    first: Evaluation
    second: Evaluation | None
    """The next one that is another deployment: other machines, model, format or split."""
    moe: Evaluation | None
    dense: Evaluation | None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Candidates whose demand is simulated, each once."""
        chosen = (one for one in self if one is not None)
        return tuple(dict.fromkeys(evaluation.candidate for evaluation in chosen))

    @property
    def resampled(self) -> tuple[Candidate, ...]:
        """Candidates of which other samples are simulated."""
        return tuple(one.candidate for one in self[:2] if one is not None)


def find_second_choice(result: SearchResult) -> Evaluation | None:
    """The cheapest deployment that differs from the first in more than a setting: in its model,
    its pruning, its machines, its number format or its split.
    """
    met, variants = result.met, result.space.variants

    def describe(evaluation: Evaluation) -> tuple[object, ...]:
        shape, prefill = evaluation.candidate.shape, evaluation.candidate.prefill
        variant = variants[shape.model]
        plain = shape._replace(
            model=variant.number,
            kv_dtype="",
            slots=0,
            overlap="",
            dispatch_dtype="",
            placement="",
            max_sequences=0,
            prompts="",
            memory_fraction=0.0,
        )
        split = prefill and (prefill.tp, prefill.attention_dp, prefill.pp)
        return (*plain, variant.pruning and variant.pruning.model_dump_json(), split)

    return next((one for one in met[1:] if describe(one) != describe(met[0])), None)


def summarise_confidence(
    result: SearchResult, choices: Choices, tried: FixedSize, costs: CostSamples
) -> Confidence:
    """Bands of the recommended deployment's figures, and probabilities that the choice is right,
    but where hits of offloaded experts are drawn.

    Args:
        tried: of the recommended deployment.
    """
    first = choices.first
    mine, demand = costs.draw_costs(first), costs.demands[first.candidate]
    if mine is None or first.cluster_size is None:
        raise ValueError("the first choice has no demand")
    plans = [
        result.trials.open_explorer(one.candidate, WHOLE).plan(one.cluster_size)
        for one in choices[:2]
        if one is not None and one.cluster_size is not None
    ]
    plan, longest = plans[0], longest_tokens(result.traffic.trace)
    starts = compute_start_probability(plan, longest)
    low, high = find_band(mine)
    kept = find_kept(demand, tried, costs.errors)
    most = find_band(draw_headroom(demand, tried, costs.errors, kept))
    meets = float(kept.mean())
    answer = Confidence(
        needed_cost_low=low,
        needed_cost_high=high,
        fails=float(np.isinf(mine).mean()),
        starts=starts,
        meets_targets=None if plan.draws_hits else starts * meets,
        headroom_low=most[0],
        headroom_high=most[1],
        figures=band_figures(demand, tried, first.outcome),
        sources=(
            *_list_sources(result, demand),
            *_list_other_calibrations(result, demand, costs),
            *_METHOD,
        ),
    )
    if any(one.draws_hits for one in plans):
        return answer
    compared: dict[str, object] = {}
    if choices.second is not None and (theirs := costs.draw_costs(choices.second)) is not None:
        less, more = float((mine < theirs).mean()), float((mine > theirs).mean())
        compared |= {
            "cheaper_than_second": less,
            "as_dear_as_second": float((~(mine < theirs) & ~(mine > theirs)).mean()),
            "dearer_than_second": more,
            "second": text_of(result, choices.second),
        }
    moe, dense = map(costs.draw_cheapest, ("MoE", "dense"))
    if moe is not None and dense is not None:
        compared |= {
            "moe_beats_dense": count_share(moe < dense, moe, dense),
            "moe_costs_no_more_than_dense": count_share(moe <= dense, moe, dense),
        }
    return answer.model_copy(update=compared)


def draw_headroom(
    demand: GpuDemand, tried: FixedSize, errors: ErrorSamples, kept: NDArray[np.bool_]
) -> Floats:
    """``[n]`` times the traffic that the recommended size carries: all of it just where it meets
    the targets.
    """
    slow = np.log([max(end, LEAST / 2) for end in tried.headroom_ends[::-1]])
    as_slow = np.exp(np.interp(-errors.draw_scores(demand.error), [-Z_80, Z_80], slow))
    other = np.array(tried.headrooms)[errors.resample] / max(tried.headrooms[0], LEAST / 2)
    found = as_slow * other
    found[found < LEAST] = 0.0
    return np.where(kept, np.maximum(found, 1.0), np.minimum(found, 1 / COARSE_STEP))


def find_kept(demand: GpuDemand, tried: FixedSize, errors: ErrorSamples) -> NDArray[np.bool_]:
    """``[n]`` samples in which the recommended size, as it is, meets all targets.

    Other samples of requests multiply latencies and add to shares of requests, which may be 0.
    """
    score, slowness = errors.draw_scores(demand.error), errors.draw_slowness(demand.error)
    kept = np.full(errors.count, True)
    for name, base in tried.slowed[1.0].ratios.items():
        curve = np.maximum.accumulate([one.ratios[name] for one in tried.slowed.values()])
        others = np.array([base, *(one.ratios[name] for one in tried.resampled)])[errors.resample]
        if name in _SHARES:
            drawn = np.interp(np.log(slowness), np.log(list(tried.slowed)), curve)
            late = [one.ratios[name] for one in tried.later.values()]
            shift = demand.error.shift_first_token(score)
            as_late = np.interp(shift, np.log(list(tried.later)), late)
            drawn = np.where(shift > 0, np.maximum(drawn, as_late), drawn)
            drawn += others - base
        else:
            known = np.log(list(tried.slowed)), np.log(np.maximum(curve, _LEAST_RATIO))
            drawn = np.exp(np.interp(np.log(slowness), *known))
            if name.startswith("ttft"):
                drawn = np.maximum(drawn, base * np.exp(demand.error.shift_first_token(score)))
            drawn = drawn * others / max(base, _LEAST_RATIO)
        kept &= drawn <= 1 + _LEAST_RATIO
    return kept


def band_figures(
    demand: GpuDemand, tried: FixedSize, outcome: Outcome | None = None
) -> dict[str, FigureBand]:
    """80 % bands of what the recommended size does: the calibration's, widened by how other samples
    scatter.

    Args:
        outcome: on all requests, which bands of the stretch that was looked at are scaled to.
    """
    whole = {} if outcome is None else list_figures(outcome)
    nearest = [_choose_nearest(tried.slowed, edge) for edge in demand.error.bands.token]
    edges = [list_figures(tried.slowed[factor]) for factor in nearest]
    scatters, bands = tried.scatters, {}
    for name, value in list_figures(tried.slowed[1.0]).items():
        ends = [edge[name] for edge in edges]
        if name.startswith("ttft"):
            ends += [value * edge for edge in demand.error.bands.first_token]
        elif name == "attainment":
            late = _choose_nearest(tried.later, demand.error.bands.first_token[1])
            ends.append(list_figures(tried.later[late])[name])
        low, high = widen_band(value, (min(ends), max(ends)), scatters[name])
        scale = whole.get(name, value) / value if value else 1.0
        low, value, high = low * scale, whole.get(name, value), high * scale
        most = 1.0 if name == "attainment" else math.inf
        bands[name] = FigureBand(value=value, low=low, high=min(high, most))
    return bands


def _list_sources(result: SearchResult, demand: GpuDemand) -> list[Source]:
    noise, bands = (1.0, *demand.noise), demand.error.bands
    samples = f"{len(RESAMPLES)} other samples of requests and of experts' choices"
    if not result.traffic.trace.provenance.startswith("generated"):
        samples = (
            f"{len(RESAMPLES)} other samples of experts' choices and of the trace's blocks, "
            "drawn with replacement"
        )
    some = result.trials.read_traffic(AS_ASKED).num_requests
    stretch = (
        ", on the busiest stretch of the traffic" if some < result.traffic.num_requests else ""
    )
    texts = {
        "calibration, time per token": (
            bands.token,
            f"Measured over predicted, 80 % of cases: {bands.source}",
        ),
        "calibration, time to first token": (
            bands.first_token,
            "Measured over predicted, 80 % of cases, of the same points",
        ),
        "samples": (
            (min(noise), max(noise)),
            f"GPUs needed with {samples}, over those with the sample asked for{stretch}",
        ),
    }
    return [
        Source(name=name, low=low, high=high, text=text)
        for name, ((low, high), text) in texts.items()
    ]


def _list_other_calibrations(
    result: SearchResult, first: GpuDemand, costs: CostSamples
) -> list[Source]:
    """Calibrations of the deployments that have another than the first choice."""
    named: dict[tuple[tuple[float, float], str], dict[str, None]] = {}
    for evaluation in result.met:
        demand = costs.demands.get(evaluation.candidate)
        if demand is None:
            continue
        bands, shape = demand.error.bands, evaluation.candidate.shape
        if bands.source != first.error.bands.source:
            machines = result.space.machines_at(shape).offer.cluster
            text = f"{result.space.models[shape.model].name} on {machines}"
            named.setdefault((bands.token, bands.source), {}).setdefault(text)
    return [
        Source(
            name=f"time per token of {', '.join(texts)}",
            low=low,
            high=high,
            text=f"Measured over predicted, 80 % of cases: {source}",
        )
        for ((low, high), source), texts in named.items()
    ]


SIMULATED, CLOSED = "simulated", "closed form"
_NEEDED = ("gpus", "cost_per_hour")
"""Figures of the cluster that would be needed, whose size is searched for in each sample."""
_PER_TOKEN = (
    "cost_per_million_output_tokens",
    "cost_per_million_tokens",
    "cost_joules_per_output_token",
)
"""Figures of the cluster as it is that tokens share."""
_LATER_BISECTIONS = 3
"""Bisections of how much later first tokens may come."""
_LATENCIES = ("tpot_s", "ttft_s", "e2e_s")
_SHARE = "attainment"
_TOKENS = "output_tokens_per_s"


def estimate_all(
    trials: Trials, evaluations: Sequence[Evaluation], rate_per_s: float
) -> list[Estimate | None]:
    """The analytical estimate of each evaluation on all requests, with other samples.

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
    for _ in range(0 if late.met else _LATER_BISECTIONS):
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

    nearest = dict.fromkeys(_choose_nearest(demand.slower, edge) for edge in demand.error.edges)
    slowed = [lose(Change(slower=factor)) for factor in nearest]
    resampled = [lose(change) for change in RESAMPLED]
    rows, note = with_losses(trials, candidate, cluster_size), describe_stretch(trials, candidate)
    for n, row in enumerate(rows):
        changes: dict[str, object] = {"note": note}
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
        gpus = costs.draw_gpus(one.evaluation, rate=one.rate, sizes=one.sizes)
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
