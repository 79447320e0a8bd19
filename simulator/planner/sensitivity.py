"""What the choice hangs on: the same question with more traffic, longer prompts, slower wires, more
skew or other prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from simulator.planner.conditions import Conditions, unchanged
from simulator.planner.confidence import Costs
from simulator.planner.evaluations import best_of_each, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.row_bands import costs_band, held, ratio_band
from simulator.planner.samples import Floats, Table
from simulator.planner.screen import Candidate
from simulator.planner.search import SearchResult
from simulator.planner.space import Space
from simulator.planner.whatif import AS_ASKED, Change, cost_of

_CUT = 0.7
"""Price of a GPU-hour that is 30 % lower."""
_MOST_OPTIONS = 6


class Priced(NamedTuple):
    """What was found, and what it costs per hour under the prices that are looked at."""

    evaluation: Evaluation
    cost: float
    table: Table | None = None
    """Of what it needs if steps take longer, under the change that it was found for."""


class WhatIf(NamedTuple):
    """One thing that may turn out differently."""

    name: str
    text: str
    change: Change


WHAT_IFS = (
    WhatIf("traffic", "twice the traffic", Change(Conditions(rate=2.0))),
    WhatIf("prompts", "prompts four times as long", Change(Conditions(prompts=4.0))),
    WhatIf("network", "a network half as fast", Change(Conditions(network=0.5))),
    WhatIf("skew", "twice the skew of experts", Change(Conditions(skew=2.0))),
)
"""Those that take simulation; prices take none."""


def candidates_of(result: SearchResult) -> list[Candidate]:
    """What is explored again: the best of every model, and then the best of other kinds."""
    chosen = dict.fromkeys(evaluation.candidate for evaluation in best_of_each(result).values())
    seen = {_kind(candidate) for candidate in chosen}
    for evaluation in result.evaluations:
        if len(chosen) >= _MOST_OPTIONS:
            break
        if evaluation.cluster_size is not None and _kind(evaluation.candidate) not in seen:
            chosen.setdefault(evaluation.candidate)
            seen.add(_kind(evaluation.candidate))
    return list(chosen)


def _kind(candidate: Candidate) -> tuple[int, int, bool]:
    return (candidate.shape.model, candidate.shape.machines, candidate.prefill is None)


def changes_of(result: SearchResult, candidate: Candidate) -> list[Change]:
    """Circumstances under which a candidate is explored anew; a dense model has no skew."""
    is_dense = result.space.models[candidate.shape.model].moe is None
    return [AS_ASKED, *(one.change for one in WHAT_IFS if not (is_dense and one.name == "skew"))]


def sensitivity(
    result: SearchResult,
    results: Mapping[tuple[Candidate, Change], Evaluation],
    tables: Mapping[tuple[Candidate, Change], Table],
    costs: Costs,
    stretch: str = "",
) -> list[dict[str, Any]]:
    """A row for each change: what is best then, what it costs, and whether that is another choice
    than without the change.

    Bands are of the deployments that a row names, with the calibration off by as much under the
    change as without it.

    Args:
        results: by candidate and change, see :func:`candidates_of` and :func:`changes_of`; likewise
            ``tables``, where there are any.
        stretch: which requests they are of.
    """
    candidates = candidates_of(result)

    def under(change: Change) -> list[Priced]:
        evaluations = []
        for candidate in candidates:
            own = change if (candidate, change) in results else AS_ASKED
            evaluation = results[candidate, own]
            evaluations.append(
                Priced(evaluation, cost_of(result.space, evaluation), tables.get((candidate, own)))
            )
        return evaluations

    base = _cheapest(under(AS_ASKED))
    if base is None:
        return []
    rows = [
        _row(
            result, costs, one.name, one.text, under(one.change), base, _note(result, one, stretch)
        )
        for one in WHAT_IFS
    ]
    rows.append(
        _priced(result, costs, "price", "GPUs 30 % cheaper", range(len(result.space.machines)))
    )
    if len(result.space.machines) > 1:
        for place, machines in enumerate(result.space.machines):
            if machines.price_per_gpu_hour > 0:
                cluster = machines.offer.cluster
                rows.append(
                    _priced(
                        result,
                        costs,
                        f"price of {cluster}",
                        f"GPUs of {cluster} 30 % cheaper",
                        [place],
                    )
                )
    return rows


def _priced(
    result: SearchResult, costs: Costs, name: str, text: str, cheaper: Any
) -> dict[str, Any]:
    """Other prices of machines, not of electricity: everything that was found is compared again."""
    known = [
        Priced(evaluation, cost_of(result.space, evaluation)) for evaluation in result.evaluations
    ]
    changed = []
    for evaluation, cost, _ in known:
        size = evaluation.cluster_size.size if evaluation.cluster_size is not None else 0
        place = evaluation.candidate.shape.machines
        saved = (
            (1 - _CUT) * size * result.space.machines[place].price_per_gpu_hour
            if place in cheaper
            else 0.0
        )
        changed.append(Priced(evaluation, cost - saved))
    base = _cheapest(known)
    if base is None:
        raise ValueError("nothing was found")
    return _row(result, costs, name, text, changed, base, "")


def _row(
    result: SearchResult,
    costs: Costs,
    name: str,
    text: str,
    evaluations: list[Priced],
    base: Priced,
    note: str,
) -> dict[str, Any]:
    best = _cheapest(evaluations)
    moe, dense = (
        _cheapest(
            [
                one
                for one in evaluations
                if result.space.kind(one.evaluation.candidate.shape) == kind
            ]
        )
        for kind in ("MoE", "dense")
    )
    row: dict[str, Any] = {
        "name": name,
        "change": text,
        "cost_per_hour": None if best is None else best.cost,
        "base_cost_per_hour": base.cost,
        "cost_ratio": None if best is None else _ratio(best, base),
        "deployment": None if best is None else text_of(result, best.evaluation),
        "flips": best is None or _choice(best.evaluation) != _choice(base.evaluation),
        "best_moe": _brief(result, moe),
        "best_dense": _brief(result, dense),
        "cost_moe_over_dense": None if moe is None or dense is None else _ratio(moe, dense),
        "note": note
        if best is not None
        else f"no deployment that was tried meets the targets then. {note}".strip(),
    }
    mine, theirs = _drawn(result, costs, best), _drawn(result, costs, base)
    if best is not None and best.cost > 0:
        row |= held("cost_per_hour", best.cost, costs_band(mine))
    row |= held("cost_ratio", row["cost_ratio"], ratio_band(mine, theirs))
    ratio = ratio_band(_drawn(result, costs, moe), _drawn(result, costs, dense))
    return row | held("cost_moe_over_dense", row["cost_moe_over_dense"], ratio)


def _drawn(result: SearchResult, costs: Costs, one: Priced | None) -> Floats | None:
    """``[n]`` draws of what it costs; of GPUs where machines cost nothing."""
    drawn = None if one is None else costs.of(one.evaluation, one.table)
    if one is None or drawn is None:
        return None
    full = cost_of(result.space, one.evaluation)
    return drawn * (one.cost / full if full > 0 else 1.0)


def _brief(result: SearchResult, priced: Priced | None) -> dict[str, Any] | None:
    if priced is None or priced.evaluation.cluster_size is None:
        return None
    return {
        "model": result.space.models[priced.evaluation.candidate.shape.model].name,
        "deployment": text_of(result, priced.evaluation),
        "gpus": priced.evaluation.cluster_size.size,
        "cost_per_hour": priced.cost,
    }


def _choice(evaluation: Evaluation) -> tuple[int, int]:
    return (evaluation.candidate.shape.model, evaluation.candidate.shape.machines)


def _cheapest(known: list[Priced]) -> Priced | None:
    """The first of the cheapest, of which the one that takes up fewest GPUs."""
    met = [one for one in known if one.evaluation.cluster_size is not None]
    return min(met, key=lambda one: (one.cost, one.evaluation.num_gpus), default=None)


def _ratio(one: Priced, other: Priced) -> float | None:
    """Of costs; of GPUs where machines cost nothing."""
    if other.cost > 0:
        return one.cost / other.cost
    sizes = one.evaluation.cluster_size, other.evaluation.cluster_size
    return (
        sizes[0].size / sizes[1].size
        if one.cost == 0 and sizes[0] is not None and sizes[1] is not None
        else None
    )


def _note(result: SearchResult, one: WhatIf, stretch: str) -> str:
    """What to know about a row."""
    parts = [stretch] if stretch else []
    if one.name == "prompts":
        for model in result.space.models:
            share = _cut_share(result, one.change.conditions.prompts, model.max_context_tokens)
            if share > 0:
                few = "fewer than 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
                parts.append(
                    f"{model.name}: {few} of prompts are cut, so that they fit its context "
                    f"of {model.max_context_tokens:,} tokens."
                )
    if one.name == "skew":
        parts += _skew_notes(result.space, one.change.conditions)
    return " ".join(parts)


def _cut_share(result: SearchResult, factor: float, context: int | None) -> float:
    trace = result.traffic.trace
    return (
        0.0
        if context is None
        else float((trace.num_input * factor + trace.num_output > context).mean())
    )


def _skew_notes(space: Space, conditions: Conditions) -> list[str]:
    if all(model.moe is None for model in space.models):
        return ["No model routes tokens to experts."]
    kept = unchanged(conditions, space.question, space.folder)
    return [
        f"Not applicable to {name}, whose experts' popularity was recorded, not drawn."
        for name in kept
    ]
