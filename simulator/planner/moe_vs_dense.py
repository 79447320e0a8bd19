"""MoE against dense at the same targets: how much dearer the other kind is, and where that turns
round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from simulator.planner.samples import (
    CostSamples,
    GpuDemand,
    find_band,
    find_ratio_band,
    name_band,
)
from simulator.planner.screen import Candidate, by_cost
from simulator.planner.search import SearchResult
from simulator.results.formats import TIMES

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
    """What the screen expects to be best at the least traffic ..."""
    much: Candidate
    """... and at the most."""

    def at(self, rate: float) -> tuple[Candidate, ...]:
        """Those that may be best."""
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
        min(kept, key=lambda one: _expected(result, one, rate), default=best.candidate)
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


def _expected(result: SearchResult, candidate: Candidate, rate: float) -> tuple[Any, ...]:
    """What a candidate would cost at another rate, going by the screen."""
    gpus = math.ceil(candidate.replicas * rate) * candidate.shape.num_ranks
    if candidate.prefill is not None:
        gpus += math.ceil(candidate.prefill_replicas * rate) * candidate.prefill.num_ranks
    held = result.space.held(gpus, candidate.shape, candidate.prefill)
    return (
        math.inf
        if held is None
        else held * result.space.machines[candidate.shape.machines].gpu_hour,
        gpus,
        *by_cost(candidate),
    )


class RateTrial(NamedTuple):
    """What a candidate costs at some rate."""

    cost: float
    evaluation: Evaluation
    change: Change
    """That it was found under."""


class CheapestAtRate(NamedTuple):
    """The cheapest of a kind at some rate."""

    cost: float
    evaluation: Evaluation
    demand: GpuDemand | None
    """Of what it needs if steps take longer."""


def over_rates(trials: Trials, moe: Rivals, dense: Rivals) -> dict[str, Any]:
    """Costs of both kinds over :data:`RATES`, and the rates at which the cheaper kind changes."""

    def tried(rate: float) -> tuple[RateTrial, RateTrial]:
        first, second = (
            [_tried(trials, one, rate) for one in kind.at(rate)] for kind in (moe, dense)
        )
        return min(first, key=lambda one: one.cost), min(second, key=lambda one: one.cost)

    def costs(rate: float) -> tuple[float, float]:
        first, second = tried(rate)
        return first.cost, second.cost

    def at(one: RateTrial) -> CheapestAtRate:
        estimate = Estimator(trials, one.change).estimate(one.evaluation)
        return CheapestAtRate(
            one.cost, one.evaluation, None if estimate is None else estimate.demand
        )

    points = [(rate, at(first), at(second)) for rate in RATES for first, second in [tried(rate)]]
    flips: list[dict[str, Any]] = []
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
            flips.append({"rate": math.sqrt(low * high), "from": last[1], "to": cheaper})
        last = (rate, cheaper)
    return {"points": points, "flips": flips}


def changes_over_rates(moe: Rivals, dense: Rivals) -> list[tuple[Candidate, Change]]:
    """What :func:`over_rates` explores for certain; between two rates it explores what it has
    to.
    """
    return [
        (one, _change(one, rate)[1])
        for rate in RATES
        for kind in (moe, dense)
        for one in kind.at(rate)
    ]


def _change(candidate: Candidate, rate: float) -> tuple[int, Change]:
    """At which traffic a candidate is explored for a rate, and how many times that must be taken.

    Pools are sized for a part of much traffic: trials of them serve every request, and larger pools
    are hardly better used.
    """
    times = 1 if candidate.prefill is None else 2 ** max(0, math.floor(math.log2(rate)))
    return times, Change(Conditions(rate=rate / times), most=SHORT_REQUESTS)


def _tried(trials: Trials, candidate: Candidate, rate: float) -> RateTrial:
    """A candidate at another rate."""
    times, change = _change(candidate, rate)
    evaluation = trials.find(candidate, change)
    if evaluation.cluster_size is None or times == 1:
        return RateTrial(price_evaluation(trials.space, evaluation), evaluation, change)
    size = trials.space.held(evaluation.num_gpus * times, candidate.shape, candidate.prefill)
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


def moe_vs_dense(
    result: SearchResult,
    rates: dict[str, Any] | None,
    sensitivities: list[dict[str, Any]],
    costs: CostSamples,
    bands: Mapping[Candidate, dict[str, Any]],
) -> dict[str, Any] | None:
    """The comparison; ``None`` where nothing meets the targets.

    Args:
        rates: what :func:`over_rates` found, where there are both kinds.
        sensitivities: rows of the sensitivity.
        bands: of deployments' figures.
    """

    def row(evaluation: Evaluation | None) -> dict[str, Any] | None:
        return (
            None
            if evaluation is None
            else row_of(result, evaluation) | bands.get(evaluation.candidate, {})
        )

    def drawn(evaluation: Evaluation | None) -> Floats | None:
        return None if evaluation is None else costs.draw_costs(evaluation)

    moe, dense = best_of_kind(result, "MoE"), best_of_kind(result, "dense")
    pruned = best_of_kind(result, "pruned")
    if moe is None and dense is None:
        return None
    ratio, pruned_ratio = _over(result, moe, dense), _over(result, pruned, dense)
    points = [_point(result, costs, *point) for point in (rates["points"] if rates else [])]
    flips = [
        {**flip, "what": "traffic", "requests_per_s": flip["rate"] * result.traffic.rate_per_s}
        for flip in (rates["flips"] if rates else [])
    ]
    flips += [
        {
            "what": row["name"],
            "change": row["change"],
            "from": _name(ratio),
            "to": _name(row["cost_moe_over_dense"]),
        }
        for row in sensitivities
        if _turns(ratio, row["cost_moe_over_dense"])
    ]
    return {
        "moe": row(moe),
        "dense": row(dense),
        "pruned": row(pruned),
        "pruned_cost_ratio": pruned_ratio,
        **name_band(
            "pruned_cost_ratio", pruned_ratio, find_ratio_band(drawn(pruned), drawn(dense))
        ),
        "cost_ratio": ratio,
        **name_band("cost_ratio", ratio, find_ratio_band(drawn(moe), drawn(dense))),
        "rates": points,
        "flips": flips,
        "text": _text(result, moe, dense, ratio, points, flips),
    }


def _point(
    result: SearchResult,
    costs: CostSamples,
    rate: float,
    moe: CheapestAtRate,
    dense: CheapestAtRate,
) -> dict[str, Any]:
    """Both kinds at one rate, with bands in closed form."""
    ratio = moe.cost / dense.cost if 0 < dense.cost < math.inf and moe.cost < math.inf else None
    drawn = [_drawn(result, costs, one) for one in (moe, dense)]
    point: dict[str, Any] = {"rate": rate, "requests_per_s": rate * result.traffic.rate_per_s}
    for name, one, draws in zip(("moe", "dense"), (moe, dense), drawn, strict=True):
        cost = one.cost if math.isfinite(one.cost) else None
        point |= {f"{name}_cost_per_hour": cost} | name_band(
            f"{name}_cost_per_hour", cost or None, find_band(draws)
        )
    return point | {"cost_ratio": ratio} | name_band("cost_ratio", ratio, find_ratio_band(*drawn))


def _drawn(result: SearchResult, costs: CostSamples, one: CheapestAtRate) -> Floats | None:
    """``[n]`` draws of what it costs; of GPUs where machines cost nothing. Only with a table: what
    is asked for is another rate.
    """
    drawn = None if one.demand is None else costs.draw_costs(one.evaluation, one.demand)
    full = price_evaluation(result.space, one.evaluation)
    return None if drawn is None else drawn * (one.cost / full if 0 < full < math.inf else 1.0)


def _over(result: SearchResult, one: Evaluation | None, dense: Evaluation | None) -> float | None:
    """What it costs over the best whole dense model's cost; of GPUs where machines cost nothing."""
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


def _text(
    result: SearchResult,
    moe: Evaluation | None,
    dense: Evaluation | None,
    ratio: float | None,
    points: list[dict[str, Any]],
    flips: list[dict[str, Any]],
) -> str:
    models = result.space.models
    if moe is None or dense is None:
        absent, present = (
            ("mixture-of-experts", "dense") if moe is None else ("dense", "mixture-of-experts")
        )
        listed = any((model.moe is not None) == (moe is None) for model in models)
        why = "meets the targets within the limits" if listed else "is among the models"
        return f"No {absent} model {why}, so a {present} one is the only choice."
    names = (models[moe.candidate.shape.model].name, models[dense.candidate.shape.model].name)
    if ratio is None:
        return f"{names[0]} and {names[1]} have no price to compare."
    if price_evaluation(result.space, dense) == 0:
        return (
            f"At the same targets {names[0]} (MoE) takes {ratio:.2f}{TIMES} the GPUs of {names[1]} "
            "(dense), which cost nothing."
        )
    if ratio == 1:
        said = f"At the same targets {names[0]} (MoE) and {names[1]} (dense) cost the same"
    else:
        said = (
            f"At the same targets {names[0]} (MoE) costs {ratio:.2f}{TIMES} "
            f"what {names[1]} (dense) does"
        )
    return f"{said}; {_where(points, flips)}."


def _within(least: str, most: str) -> str:
    return least if least == most else f"between {least} and {most}"


def _where(points: list[dict[str, Any]], flips: list[dict[str, Any]]) -> str:
    kinds = {"moe": "MoE", "dense": "dense"}
    turned = [
        (
            f"at {flip['rate']:.2g}{TIMES} the traffic ({flip['requests_per_s']:.3g} requests/s) "
            f"from {kinds[flip['from']]} to {kinds[flip['to']]}"
        )
        for flip in flips
        if flip["what"] == "traffic"
    ]
    turned += [
        f"with {flip['change']} to {kinds[flip['to']]}"
        for flip in flips
        if flip["what"] != "traffic"
    ]
    if turned:
        return "the cheaper kind changes " + " and ".join(turned)
    ratios = [point["cost_ratio"] for point in points if point["cost_ratio"] is not None]
    if not ratios:
        return "nothing that was tried changes that"
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    stays = (
        "both go on costing the same"
        if least == most == "1.00"
        else f"the MoE's cost stays {_within(least, most)} of the dense model's"
    )
    return f"from {RATES[0]:g}{TIMES} to {RATES[-1]:g}{TIMES} the traffic {stays}"
