"""Reasons why a model of the list, or all of them, cannot do the job: the limit that stops it, and
by how much it misses.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from simulator.planner.evaluations import best_of_each, row_of, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.ruled_out import MEMORY, NO_SPARES, TOO_LARGE, Ruled
from simulator.planner.search import SearchResult
from simulator.results.answer import WhyNot
from simulator.results.plan_sentences import state_shortfall


def find_nearest(result: SearchResult) -> WhyNot:
    """The deployment that misses a target by least; where nothing could be run at all, the reason
    for that.
    """
    best = _find_nearest(result, range(len(result.space.models)))
    if best is not None:
        return _describe_miss(result, best)
    texts = {name: _find_reason(result, numbers) for name, numbers in _list_models(result).items()}
    if len(set(texts.values())) == 1:
        return WhyNot(text=next(iter(texts.values())))
    return WhyNot(text="; ".join(f"{name}: {text}" for name, text in texts.items()))


def explain_models(result: SearchResult) -> dict[str, WhyNot]:
    """The reason against every model that no deployment meets the targets with, by name."""
    met = best_of_each(result)
    stopped: dict[str, WhyNot] = {}
    for name, numbers in _list_models(result).items():
        if name not in met:
            best = _find_nearest(result, numbers)
            stopped[name] = (
                WhyNot(text=_find_reason(result, numbers))
                if best is None
                else _describe_miss(result, best)
            )
    return stopped


def _list_models(result: SearchResult) -> dict[str, list[int]]:
    """Numbers of each model by name: one for every value of ``space.keys``."""
    numbers: dict[str, list[int]] = {}
    for number, model in enumerate(result.space.models):
        numbers.setdefault(model.name, []).append(number)
    return numbers


def _find_nearest(result: SearchResult, models: Collection[int]) -> Evaluation | None:
    tried = [
        one
        for one in result.evaluations
        if one.outcome is not None and one.most is not None and one.candidate.shape.model in models
    ]
    return min(
        tried,
        key=lambda one: one.outcome.worst if one.outcome is not None else math.inf,
        default=None,
    )


def _describe_miss(result: SearchResult, evaluation: Evaluation) -> WhyNot:
    """The target that a deployment misses on the largest cluster within the limits."""
    outcome, most = evaluation.outcome, evaluation.most
    if outcome is None or most is None:
        raise ValueError("nothing was measured")
    machines = result.space.machines_at(evaluation.candidate.shape)
    there = replace(evaluation, cluster_size=most, cost_per_hour=most.size * machines.gpu_hour)
    most_of = ""
    if most.size == machines.sizes[-1]:
        most_of = (
            f"all that {machines.bound} allows"
            if machines.bound
            else f"the most that {machines.offer.cluster} comes in"
        )
    target = outcome.tightest
    return WhyNot(
        deployment=text_of(result, there),
        target=target,
        measured=outcome.measured[target],
        times_over=outcome.worst,
        bound=machines.bound,
        row=row_of(result, there),
        text=str(state_shortfall(target, outcome.worst, most.size, most_of)),
    )


def _find_reason(result: SearchResult, models: Collection[int]) -> str:
    """The reason that says most of why no deployment of a model came as far as a simulation."""
    total = Ruled()
    for (number, _), part in result.screened.items():
        if number in models:
            total.add(part.ruled)
    telling = total.telling()
    failed = next(
        (
            one.why
            for one in result.evaluations
            if one.candidate.shape.model in models and one.outcome is None and one.why
        ),
        None,
    )
    if failed is not None:
        return failed.split("': ", 1)[-1].split("; ", 1)[0]
    if telling == NO_SPARES:
        return f"{telling}: {total.examples[telling]}"
    if telling == MEMORY and TOO_LARGE in total.counts:
        bounds = dict.fromkeys(
            machines.bound for machines in result.space.machines if machines.bound
        )
        largest = f"space.max_gpus_per_replica = {result.question.space.max_gpus_per_replica}"
        return f"{telling}, and larger replicas are beyond {' and '.join(bounds) or largest}"
    return telling or "nothing was tried"
