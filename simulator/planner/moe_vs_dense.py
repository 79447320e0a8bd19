"""Mixtures of experts against dense models at the same targets: how much dearer the other kind is,
and where that turns round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from simulator.planner.calibration_error import Floats
from simulator.planner.conditions import (
    SHORT_REQUESTS,
    Change,
    Conditions,
    Trials,
    price_evaluation,
)
from simulator.planner.estimate import Estimator
from simulator.planner.evaluations import best_of_each, row_of
from simulator.planner.explore import Evaluation
from simulator.planner.samples import CostSamples, GpuDemand, find_band, find_ratio_band, name_band
from simulator.planner.screen import Candidate, by_cost
from simulator.planner.search import SearchResult
from simulator.results.answer import Comparison, DeploymentRow, SensitivityRow
from simulator.results.answer.certainty import Flip, RatePoint
from simulator.results.plan_sentences.comparison import compare_kinds, state_only_kind

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Times the traffic that was asked for."""
_BISECTIONS = 3


def best_of_kind(result: SearchResult, kind: str) -> Evaluation | None:
    """The cheapest deployment of a kind, see :meth:`simulator.planner.space.Space.kind`."""
    return next(
        (
            one
            for one in best_of_each(result).values()
            if result.space.kind(one.candidate.shape) == kind
        ),
        None,
    )


class Rivals(NamedTuple):
    """Deployments of a kind that are compared at other traffic."""

    now: Candidate
    """The best at the traffic that was asked for."""
    little: Candidate
    """The one that the screen expects to be best at the least traffic."""
    much: Candidate
    """The one that the screen expects to be best at the most traffic."""

    def select_at(self, rate: float) -> tuple[Candidate, ...]:
        """Candidates that may be best at a rate."""
        other = self.little if rate < 1 else self.much if rate > 1 else self.now
        return (self.now,) if other == self.now else (self.now, other)


def rivals(result: SearchResult, best: Evaluation) -> Rivals:
    """The best of a kind, and others of the kind that the screen kept."""
    kind = result.space.kind(best.candidate.shape)
    kept = [
        one
        for part in result.screened.values()
        for one in part.candidates
        if result.space.kind(one.shape) == kind
    ]
    little, much = (
        min(kept, key=lambda one: _estimate_cost(result, one, rate), default=best.candidate)
        for rate in (RATES[0], RATES[-1])
    )
    return Rivals(
        best.candidate,
        *(best.candidate if _is_alike(one, best.candidate) else one for one in (little, much)),
    )


def _is_alike(one: Candidate, other: Candidate) -> bool:
    """Whether they are the same deployment but for the number of replicas: as the screen expected
    it, and as it was found.
    """
    return (one.shape, one.budget, one.prefill) == (other.shape, other.budget, other.prefill)


def _estimate_cost(result: SearchResult, candidate: Candidate, rate: float) -> tuple[Any, ...]:
    """Cost of a candidate at another rate, going by the screen."""
    gpus = math.ceil(candidate.replicas * rate) * candidate.shape.num_ranks
    if candidate.prefill is not None:
        gpus += math.ceil(candidate.prefill_replicas * rate) * candidate.prefill.num_ranks
    held = result.space.find_cluster(gpus, candidate.shape, candidate.prefill)
    return (
        math.inf
        if held is None
        else held * result.space.machines[candidate.shape.machines].gpu_hour,
        gpus,
        *by_cost(candidate),
    )


class RateTrial(NamedTuple):
    """A candidate at some rate."""

    cost: float
    """Cost per hour, in the plan's currency."""
    evaluation: Evaluation
    change: Change
    """Change of the question that the evaluation was found under."""


class CheapestAtRate(NamedTuple):
    """The cheapest of a kind at some rate."""

    cost: float
    """Cost per hour, in the plan's currency."""
    evaluation: Evaluation
    demand: GpuDemand | None
    """GPUs that it needs if steps take longer."""


class Turn(NamedTuple):
    """A rate at which the cheaper kind changes."""

    rate: float
    """Times the planned traffic."""
    before: str
    """The cheaper kind at lower rates: moe or dense."""
    after: str
    """The cheaper kind at higher rates."""


class OverRates(NamedTuple):
    """The cheapest mixture of experts and dense model at several rates of requests."""

    points: list[tuple[float, CheapestAtRate, CheapestAtRate]]
    """Rate, the cheapest mixture of experts and the cheapest dense model."""
    turns: list[Turn]
    """Rates at which the cheaper kind changes."""


def over_rates(trials: Trials, moe: Rivals, dense: Rivals) -> OverRates:
    """Costs of both kinds over :data:`RATES`, and the rates at which the cheaper kind changes."""

    def try_rate(rate: float) -> tuple[RateTrial, RateTrial]:
        first, second = (
            [_try_candidate(trials, one, rate) for one in kind.select_at(rate)]
            for kind in (moe, dense)
        )
        return min(first, key=lambda one: one.cost), min(second, key=lambda one: one.cost)

    def costs(rate: float) -> tuple[float, float]:
        first, second = try_rate(rate)
        return first.cost, second.cost

    def estimate_demand(one: RateTrial) -> CheapestAtRate:
        estimate = Estimator(trials, one.change).estimate(one.evaluation)
        return CheapestAtRate(
            one.cost, one.evaluation, None if estimate is None else estimate.demand
        )

    points = [
        (rate, estimate_demand(first), estimate_demand(second))
        for rate in RATES
        for first, second in [try_rate(rate)]
    ]
    turns: list[Turn] = []
    last: tuple[float, str] | None = None
    for rate, first, second in points:
        cheaper = _cheaper(first.cost, second.cost)
        if cheaper == "same":
            continue
        if last is not None and last[1] != cheaper:
            low, high = last[0], rate
            for _ in range(_BISECTIONS):
                middle = math.sqrt(low * high)
                low, high = (middle, high) if _cheaper(*costs(middle)) == last[1] else (low, middle)
            turns.append(Turn(math.sqrt(low * high), last[1], cheaper))
        last = (rate, cheaper)
    return OverRates(points, turns)


def changes_over_rates(moe: Rivals, dense: Rivals) -> list[tuple[Candidate, Change]]:
    """Explorations that :func:`over_rates` asks for in any case; others lie between two rates."""
    return [
        (one, _change(one, rate)[1])
        for rate in RATES
        for kind in (moe, dense)
        for one in kind.select_at(rate)
    ]


def _change(candidate: Candidate, rate: float) -> tuple[int, Change]:
    """Times the cluster of an exploration, and the change that it is under, for a rate.

    Pools are sized for a part of much traffic: trials of them serve every request, and larger pools
    are hardly better used.
    """
    times = 1 if candidate.prefill is None else 2 ** max(0, math.floor(math.log2(rate)))
    return times, Change(Conditions(rate=rate / times), most=SHORT_REQUESTS)


def _try_candidate(trials: Trials, candidate: Candidate, rate: float) -> RateTrial:
    """A candidate at another rate."""
    times, change = _change(candidate, rate)
    evaluation = trials.find(candidate, change)
    if evaluation.cluster_size is None or times == 1:
        return RateTrial(price_evaluation(trials.space, evaluation), evaluation, change)
    size = trials.space.find_cluster(
        evaluation.num_gpus * times, candidate.shape, candidate.prefill
    )
    return RateTrial(
        math.inf
        if size is None
        else size * trials.space.machines[candidate.shape.machines].gpu_hour,
        evaluation,
        change,
    )


def _cheaper(moe: float, dense: float) -> str:
    if moe == dense:
        return "same"
    return "moe" if moe < dense else "dense"


def compare_at_targets(
    result: SearchResult,
    rates: OverRates | None,
    sensitivities: Sequence[SensitivityRow],
    costs: CostSamples,
    bands: Mapping[Candidate, dict[str, Any]],
) -> Comparison | None:
    """The comparison; ``None`` where nothing meets the targets.

    Args:
        rates: both kinds at other rates, where there are both.
        sensitivities: rows of the sensitivity.
        bands: ends of the bands of deployments' figures.
    """
    best = {kind: best_of_kind(result, kind) for kind in ("MoE", "dense", "pruned")}
    moe, dense, pruned = best.values()
    if moe is None and dense is None:
        return None
    drawn = {kind: None if one is None else costs.draw_costs(one) for kind, one in best.items()}
    rows = {
        kind.lower(): None if one is None else row_of(result, one, bands.get(one.candidate, {}))
        for kind, one in best.items()
    }
    ratio, pruned_ratio = _divide_costs(result, moe, dense), _divide_costs(result, pruned, dense)
    points = [_point(result, costs, *point) for point in (rates.points if rates else [])]
    flips = [*_list_turns(result, rates), *_list_flips(ratio, sensitivities)]
    return Comparison.model_validate(
        {
            **rows,
            "pruned_cost_ratio": pruned_ratio,
            **name_band(
                "pruned_cost_ratio", pruned_ratio, find_ratio_band(drawn["pruned"], drawn["dense"])
            ),
            "cost_ratio": ratio,
            **name_band("cost_ratio", ratio, find_ratio_band(drawn["MoE"], drawn["dense"])),
            "rates": points,
            "flips": flips,
            "text": _text(result, rows["moe"], rows["dense"], ratio, points, flips),
        }
    )


def _list_turns(result: SearchResult, rates: OverRates | None) -> list[Flip]:
    return [
        Flip(
            what="traffic",
            before=turn.before,
            after=turn.after,
            rate=turn.rate,
            requests_per_s=turn.rate * result.traffic.rate_per_s,
        )
        for turn in (rates.turns if rates else [])
    ]


def _list_flips(ratio: float | None, sensitivities: Sequence[SensitivityRow]) -> list[Flip]:
    """Changes other than of the traffic at which the cheaper kind changes."""
    return [
        Flip(
            what=row.name,
            change=row.change,
            before=_name(ratio),
            after=_name(row.cost_moe_over_dense),
        )
        for row in sensitivities
        if _turns(ratio, row.cost_moe_over_dense)
    ]


def _text(
    result: SearchResult,
    moe: DeploymentRow | None,
    dense: DeploymentRow | None,
    ratio: float | None,
    points: list[RatePoint],
    flips: list[Flip],
) -> str:
    if moe is None or dense is None:
        listed = [model.moe is not None for model in result.space.models]
        return state_only_kind(moe is not None, listed)
    return compare_kinds(moe, dense, ratio, points, flips)


def _point(
    result: SearchResult,
    costs: CostSamples,
    rate: float,
    moe: CheapestAtRate,
    dense: CheapestAtRate,
) -> RatePoint:
    """Compare the cheapest mixture of experts and dense model at one rate of requests, with bands
    in closed form.
    """
    ratio = moe.cost / dense.cost if 0 < dense.cost < math.inf and moe.cost < math.inf else None
    drawn = [_draw_costs(result, costs, one) for one in (moe, dense)]
    point: dict[str, Any] = {"rate": rate, "requests_per_s": rate * result.traffic.rate_per_s}
    for name, one, draws in zip(("moe", "dense"), (moe, dense), drawn, strict=True):
        cost = one.cost if math.isfinite(one.cost) else None
        point |= {f"{name}_cost_per_hour": cost} | name_band(
            f"{name}_cost_per_hour", cost or None, find_band(draws)
        )
    banded = name_band("cost_ratio", ratio, find_ratio_band(*drawn))
    return RatePoint.model_validate({**point, "cost_ratio": ratio, **banded})


def _draw_costs(result: SearchResult, costs: CostSamples, one: CheapestAtRate) -> Floats | None:
    """``[n]`` draws of what it costs; of GPUs where machines cost nothing. Only with a table: what
    is asked for is another rate.
    """
    drawn = None if one.demand is None else costs.draw_costs(one.evaluation, one.demand)
    full = price_evaluation(result.space, one.evaluation)
    return None if drawn is None else drawn * (one.cost / full if 0 < full < math.inf else 1.0)


def _divide_costs(
    result: SearchResult, one: Evaluation | None, dense: Evaluation | None
) -> float | None:
    """Cost over that of the best whole dense model; ratio of GPUs where machines cost nothing."""
    if one is None or dense is None:
        return None
    cost, least = price_evaluation(result.space, one), price_evaluation(result.space, dense)
    if least > 0:
        return cost / least
    return (
        one.cluster_size.size / dense.cluster_size.size
        if cost == 0 and one.cluster_size is not None and dense.cluster_size is not None
        else None
    )


def _turns(ratio: float | None, other: float | None) -> bool:
    return ratio is not None and other is not None and (ratio - 1) * (other - 1) < 0


def _name(ratio: float | None) -> str:
    return "moe" if ratio is not None and ratio < 1 else "dense"
