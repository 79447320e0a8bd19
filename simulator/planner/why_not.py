"""Why a model of the list, or all of them, cannot do the job: which limit stops it, and by how much
it misses.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from simulator.planner.evaluations import best_of_each, row_of, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.ruled_out import MEMORY, TOO_LARGE, Ruled
from simulator.planner.search import SearchResult
from simulator.planner.words import missed


def nearest(result: SearchResult) -> dict[str, Any]:
    """Of the deployments that miss a target, the one that misses least: which target, by how much,
    and what the deployment is.

    Where nothing could be run at all, ``text`` says why, and there is no ``row``.
    """
    best = _nearest(result, range(len(result.space.models)))
    if best is None:
        texts = {
            result.space.models[n].name: _ruled_out(result, n)
            for n in range(len(result.space.models))
        }
        reasons = dict.fromkeys(texts.values())
        if len(reasons) == 1:
            return {"text": next(iter(reasons))}
        return {"text": "; ".join(f"{name}: {text}" for name, text in texts.items())}
    return _missing(result, best)


def of_each_model(result: SearchResult) -> dict[str, dict[str, Any]]:
    """By name, of every model that no deployment meets the targets with: what stops it, as
    :func:`nearest`.
    """
    met = best_of_each(result)
    told: dict[str, dict[str, Any]] = {}
    for number, model in enumerate(result.space.models):
        if model.name not in met:
            best = _nearest(result, [number])
            told[model.name] = (
                {"text": _ruled_out(result, number)} if best is None else _missing(result, best)
            )
    return told


def _nearest(result: SearchResult, models: Any) -> Evaluation | None:
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


def _missing(result: SearchResult, evaluation: Evaluation) -> dict[str, Any]:
    """What a deployment misses on the largest cluster within the limits."""
    outcome, most = evaluation.outcome, evaluation.most
    if outcome is None or most is None:
        raise ValueError("nothing was measured")
    shape, prefill = evaluation.candidate.shape, evaluation.candidate.prefill
    machines = result.space.machines[shape.machines]
    used = most.replicas * shape.num_ranks + (
        most.prefill_replicas * prefill.num_ranks if prefill is not None else 0
    )
    there = replace(
        evaluation, cluster_size=most, cost_per_hour=most.size * machines.gpu_hour, num_gpus=used
    )
    allowed = ""
    if most.size == machines.sizes[-1]:
        allowed = (
            f", all that {machines.bound} allows"
            if machines.bound
            else f", the most that {machines.offer.cluster} comes in"
        )
    target = outcome.tightest
    number = "1 GPU" if most.size == 1 else f"{most.size:,} GPUs"
    return {
        "deployment": text_of(result, there),
        "target": target,
        "measured": outcome.measured[target],
        "times_over": outcome.worst,
        "bound": machines.bound,
        "row": row_of(result, there),
        "text": f"{missed(target, outcome.worst)} on {number}{allowed}",
    }


def _ruled_out(result: SearchResult, model: int) -> str:
    """The reason that says most of why no deployment of a model came as far as a simulation."""
    total = Ruled()
    for (number, _), part in result.screened.items():
        if number == model:
            for reason, count in part.ruled.counts.items():
                total.out(reason, part.ruled.examples[reason], count)
    telling = total.telling()
    failed = next(
        (
            one.why
            for one in result.evaluations
            if one.candidate.shape.model == model and one.outcome is None and one.why
        ),
        None,
    )
    if failed is not None:
        return failed.split("': ", 1)[-1].split("; ", 1)[0]
    if telling == MEMORY and TOO_LARGE in total.counts:
        bounds = dict.fromkeys(
            machines.bound for machines in result.space.machines if machines.bound
        )
        largest = f"space.max_gpus_per_replica = {result.question.space.max_gpus_per_replica}"
        return f"{telling}, and larger replicas are beyond {' and '.join(bounds) or largest}"
    return telling or "nothing was tried"
