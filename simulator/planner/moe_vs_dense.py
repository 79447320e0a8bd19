"""Mixtures of experts against dense models at the same targets: how much dearer the other kind is,
and where that turns round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from simulator.planner.conditions import Change, Conditions, Trials
from simulator.planner.estimate import Estimator
from simulator.planner.evaluations import FigureBands, best_of_each, row_of
from simulator.planner.explore import Evaluation
from simulator.planner.samples import (
    CostSamples,
    Priced,
    find_band,
    find_ratio_band,
    name_band,
    price,
)
from simulator.planner.screen import Candidate, by_cost
from simulator.planner.search import SearchResult
from simulator.planner.space import Space
from simulator.planner.traffic import count_needed
from simulator.results.answer import Comparison, DeploymentRow, SensitivityRow
from simulator.results.answer.certainty import Flip, RatePoint
from simulator.results.plan_sentences import compare_kinds, state_only_kind

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
    others: tuple[Candidate, ...] = ()
    """Others that what-ifs explore as asked and at twice the traffic."""

    def select_at(self, rate: float) -> tuple[Candidate, ...]:
        """Candidates that may be best at a rate."""
        other = self.little if rate < 1 else self.much if rate > 1 else self.now
        others = self.others if rate in (1.0, 2.0) else ()
        return tuple(dict.fromkeys((self.now, other, *others)))


def rivals(result: SearchResult, best: Evaluation, explored: Iterable[Candidate] = ()) -> Rivals:
    """The best of a kind, and others of the kind that the screen kept.

    Args:
        explored: candidates that what-ifs explore.
    """
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
    little, much = (
        best.candidate if _is_alike(one, best.candidate) else one for one in (little, much)
    )
    others = tuple(one for one in explored if result.space.kind(one.shape) == kind)
    return Rivals(best.candidate, little, much, others)


def _is_alike(one: Candidate, other: Candidate) -> bool:
    """Whether they are the same deployment but for the number of replicas: as the screen expected
    it, and as it was found.
    """
    return (one.shape, one.budget, one.prefill) == (other.shape, other.budget, other.prefill)


def _estimate_cost(result: SearchResult, candidate: Candidate, rate: float) -> tuple[Any, ...]:
    """Cost of a candidate at another rate, going by the screen."""
    counts = (candidate.replicas, candidate.prefill_replicas)
    replicas, prompts = (math.ceil(count * rate) for count in counts)
    cost = _price_replicas(result.space, candidate, replicas, prompts)
    return (cost, candidate.count_gpus(replicas, prompts), *by_cost(candidate))


def _price_replicas(space: Space, candidate: Candidate, replicas: int, prompts: int) -> float:
    """Cost per hour of the smallest cluster with so many replicas; infinite where there is none."""
    size = space.find_cluster(candidate.shape, replicas, candidate.prefill, prompts)
    return math.inf if size is None else size * space.machines_at(candidate.shape).gpu_hour


class OverRates(NamedTuple):
    """The cheapest mixture of experts and dense model at several rates of requests."""

    points: list[tuple[float, Priced, Priced]]
    """Rate, the cheapest mixture of experts and the cheapest dense model."""
    flips: list[Flip]
    """Rates at which the cheaper kind changes."""


def over_rates(trials: Trials, moe: Rivals, dense: Rivals) -> OverRates:
    """Costs of both kinds over :data:`RATES`, and the rates at which the cheaper kind changes."""

    def try_rate(rate: float) -> tuple[Priced, Priced]:
        first, second = (
            min(
                (price(trials.find(one, _at_rate(rate))) for one in kind.select_at(rate)),
                key=lambda one: one.cost,
            )
            for kind in (moe, dense)
        )
        more = found.get(min((one for one in found if one > rate), default=rate))
        if more is not None:  # what carries more carries this
            first, second = (
                min(pair, key=lambda one: one.cost)
                for pair in zip((first, second), more, strict=True)
            )
        return first, second

    found: dict[float, tuple[Priced, Priced]] = {}

    def add_demand(one: Priced, rate: float) -> Priced:
        if one.evaluation.candidate in (moe.now, *moe.others, dense.now, *dense.others):
            return one._replace(rate=rate)  # known as asked
        estimate = Estimator(trials, _at_rate(rate)).estimate(one.evaluation)
        return one._replace(demand=estimate and estimate.demand, rate=rate)

    points: list[tuple[float, Priced, Priced]] = []
    flips: list[Flip] = []
    last: tuple[float, str] | None = None
    rates = list_rates(trials)
    for rate in reversed(rates):
        found[rate] = try_rate(rate)
    for rate in rates:
        first, second = found[rate]
        points.append((rate, add_demand(first, rate), add_demand(second, rate)))
        cheaper = _cheaper(first, second)
        if cheaper == "same":
            continue
        if last is not None and last[1] != cheaper:
            low, high = last[0], rate
            for _ in range(_BISECTIONS):
                middle = math.sqrt(low * high)
                is_before = _cheaper(*try_rate(middle)) == last[1]
                low, high = (middle, high) if is_before else (low, middle)
            turn, kinds = math.sqrt(low * high), {"before": last[1], "after": cheaper}
            flips.append(
                Flip(what="traffic", **kinds, rate=turn, requests_per_s=_read_rate(trials, turn))
            )
        last = (rate, cheaper)
    return OverRates(points, flips)


def list_rates(trials: Trials) -> list[float]:
    """Rates of :data:`RATES` at which the requests determine an answer: they last long enough for a
    steady state, and enough lie beyond the highest percentile. All, where they do not as asked.
    """
    least = count_needed(trials.space.question) / 2

    def is_enough(rate: float) -> bool:
        traffic = trials.read_traffic(_at_rate(rate))
        return traffic.is_steady and traffic.num_requests >= least

    return [rate for rate in RATES if is_enough(rate)] if is_enough(1.0) else list(RATES)


def changes_over_rates(
    trials: Trials, moe: Rivals, dense: Rivals
) -> list[tuple[Candidate, Change]]:
    """Explorations that :func:`over_rates` asks for in any case; others lie between two rates."""
    return [
        (one, _at_rate(rate))
        for rate in list_rates(trials)
        for kind in (moe, dense)
        for one in kind.select_at(rate)
    ]


def _read_rate(trials: Trials, rate: float) -> float:
    """Requests a second at a factor: a peak of so many seconds holds others then."""
    return trials.read_traffic(_at_rate(rate)._replace(is_whole=True)).rate_per_s


def _at_rate(rate: float) -> Change:
    return Change(Conditions(rate=rate))


def _cheaper(moe: Priced, dense: Priced) -> str:
    if moe.cost == dense.cost:
        return "same"
    return "moe" if moe.cost < dense.cost else "dense"


def compare_at_targets(
    result: SearchResult,
    rates: OverRates | None,
    sensitivities: Sequence[SensitivityRow],
    costs: CostSamples,
    bands: Mapping[Candidate, FigureBands],
) -> Comparison | None:
    """The comparison; ``None`` where nothing meets the targets.

    Args:
        rates: both kinds at other rates, where there are both.
        sensitivities: rows of the sensitivity.
        bands: of deployments' figures.
    """
    best = {kind: best_of_kind(result, kind) for kind in ("MoE", "dense", "pruned")}
    if best["MoE"] is None and best["dense"] is None:
        return None
    rows = {
        kind: None if one is None else row_of(result, one, bands.get(one.candidate))
        for kind, one in best.items()
    }
    moe, dense, pruned = (None if one is None else price(one) for one in best.values())
    ratio = moe.divide(dense) if moe and dense else None
    pruned_ratio = pruned.divide(dense) if pruned and dense else None
    drawn = [costs.draw_cheapest(kind) for kind in best]
    points = [_point(result, costs, *point) for point in (rates.points if rates else [])]
    flips = [*(rates.flips if rates else []), *_list_flips(ratio, sensitivities)]
    return Comparison.model_validate(
        {
            **{kind.lower(): row for kind, row in rows.items()},
            "pruned_cost_ratio": pruned_ratio,
            **name_band("pruned_cost_ratio", pruned_ratio, find_ratio_band(drawn[2], drawn[1])),
            "cost_ratio": ratio,
            **name_band("cost_ratio", ratio, find_ratio_band(*drawn[:2])),
            "rates": points,
            "flips": flips,
            "text": _text(result, rows["MoE"], rows["dense"], ratio, points, flips),
        }
    )


def _list_flips(ratio: float | None, sensitivities: Sequence[SensitivityRow]) -> list[Flip]:
    """Changes other than of the traffic at which the cheaper kind changes."""
    return [
        Flip(what=row.name, change=row.change, before=_name(ratio), after=_name(other))
        for row in sensitivities
        if (other := row.cost_moe_over_dense) is not None
        and ratio is not None
        and (ratio - 1) * (other - 1) < 0
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
        return str(state_only_kind(moe is not None, listed))
    return str(compare_kinds(moe, dense, ratio, points, flips))


def _point(
    result: SearchResult, costs: CostSamples, rate: float, moe: Priced, dense: Priced
) -> RatePoint:
    """Compare the cheapest mixture of experts and dense model at one rate of requests."""
    is_known = 0 < dense.cost < math.inf and moe.cost < math.inf
    ratio = moe.cost / dense.cost if is_known else None
    drawn = [costs.draw_priced(one) for one in (moe, dense)]
    point: dict[str, Any] = {"rate": rate, "requests_per_s": _read_rate(result.trials, rate)}
    for name, one, draws in zip(("moe", "dense"), (moe, dense), drawn, strict=True):
        key = f"{name}_cost_per_hour"
        point |= {key: one.finite_cost}
        point |= name_band(key, one.finite_cost or None, find_band(draws))
    banded = name_band("cost_ratio", ratio, find_ratio_band(*drawn))
    return RatePoint.model_validate({**point, "cost_ratio": ratio, **banded})


def _name(ratio: float) -> str:
    return "moe" if ratio < 1 else "dense"
