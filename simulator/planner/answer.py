"""The answer: what to deploy, what else would do, what it hangs on; every number in it can be
traced to a finding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.config.capacity import Spare
from simulator.planner import words
from simulator.planner.assumptions import basis
from simulator.planner.crossover import crossover_of
from simulator.planner.evaluations import best_of_each, headroom_of, row_of
from simulator.planner.explore import resize_candidate
from simulator.planner.handover import handover
from simulator.planner.losses import whole_nodes
from simulator.planner.pareto import pareto
from simulator.planner.samples import name_band
from simulator.planner.search import SearchResult
from simulator.planner.sizes import around
from simulator.planner.why_not import nearest, of_each_model


def summary(
    result: SearchResult, doubts: dict[str, Any] | None = None, target: Path | None = None
) -> dict[str, Any]:
    """The answer as JSON: numbers, no objects.

    Args:
        doubts: of :func:`simulator.planner.uncertainty.assessment.assess`, to be part of it.
        target: as of :func:`simulator.planner.handover.scenario_text`.
    """
    met = [evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None]
    choices = dict(doubts or {})
    bands: list[dict[str, Any]] = choices.pop("bands", None) or [{} for _ in met]
    rows = [row_of(result, evaluation) | band for evaluation, band in zip(met, bands, strict=True)]
    by_candidate = {evaluation.candidate: row for evaluation, row in zip(met, rows, strict=True)}
    answer: dict[str, Any] = {
        "name": result.question.name,
        "seed": result.question.seed,
        "currency": result.question.power.currency,
        "targets": _targets(result),
        "models": [
            {"name": model.name, "is_moe": model.moe is not None} for model in result.space.models
        ],
        "spare": _spare(result),
        "clusters": [machines.offer.cluster for machines in result.space.machines],
        "num_simulated": _num_simulated(result),
        "num_legal": result.num_legal,
        "num_ruled_out": sum(result.ruled.counts.values()),
        "ruled_out": [
            {"reason": reason, "count": count, "example": result.ruled.examples[reason]}
            for reason, count in result.ruled.counts.items()
        ],
        "traffic": {
            "rate_per_s": result.traffic.rate_per_s,
            "num_requests": result.traffic.num_requests,
            "lead_requests": result.traffic.lead,
            "lasts_s": result.traffic.duration_s,
            "stay_s": result.traffic.stay_s,
            "is_steady": result.traffic.is_steady,
            "lengthened_from": result.asked_requests,
            "mean_input": result.traffic.num_input,
            "mean_output": result.traffic.num_output,
        },
        "clusters_ruled_out": {
            one.offer.cluster: one.beyond for one in result.space.machines if one.beyond
        },
        "why_not_models": of_each_model(result),
        "best_of_each_model": {
            name: by_candidate[evaluation.candidate]
            for name, evaluation in best_of_each(result).items()
        },
        "candidates": rows,
        "pareto": pareto(result, bands),
        "crossover": choices.pop("crossover") if "crossover" in choices else crossover_of(result),
    }
    if met:
        room = choices.pop("headroom") if "headroom" in choices else headroom_of(result, met[0])
        sure = choices.get("confidence") or {}
        ends = sure.get("headroom_low"), sure.get("headroom_high")
        answer["recommended"] = (
            rows[0] | {"headroom": room} | (name_band("headroom", room, ends) if sure else {})
        )
        answer["sizes"] = choices.pop("sizes") if "sizes" in choices else around(result, met[0])
        answer["basis"] = basis(result)
        answer["handover"] = handover(result, target)
    else:
        answer["why_not"] = nearest(result)
    answer |= choices
    answer["headline"], answer["reasons"] = words.headline(answer), words.reasons(answer)
    return answer


def _num_simulated(result: SearchResult) -> int:
    """Searches for a size; once for deployments whose first round was of all requests, however many
    replicas they turned out to need.
    """
    first = [
        replace(evaluation, candidate=resize_candidate(evaluation)) for evaluation in result.first
    ]
    return len(first) + sum(evaluation not in first for evaluation in result.evaluations)


def _spare(result: SearchResult) -> dict[str, Any]:
    """What may be lost, how many GPUs the recommended deployment holds free for that, on how many
    nodes its cluster is, and what whole nodes would take where replicas are rented on nodes of
    their own.
    """
    best = next(
        (evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None),
        None,
    )
    lost = result.question.spare
    table: dict[str, Any] = {"lost": str(lost) if lost != Spare() else "", "gpus": 0}
    if best is None or best.cluster_size is None:
        return table
    sides, space = (best.candidate.shape, best.candidate.prefill), result.space
    machines, host_gpus = space.machines[best.candidate.shape.machines], space.host_gpus(*sides)
    return table | {
        "gpus": space.spare_gpus(*sides),
        "nodes": -(-best.cluster_size.size // host_gpus),
        "is_spread": host_gpus < machines.spec.gpus_per_node,
        **whole_nodes(machines, host_gpus, best.num_gpus, lost),
    }


def _targets(result: SearchResult) -> dict[str, float]:
    """Limits by target, named as in an outcome."""
    targets = result.question.targets
    limits = {
        f"{name}.{level}": limit
        for name in ("ttft_s", "tpot_s", "e2e_s")
        for level, limit in getattr(targets, name).limits().items()
    }
    shares = {"attainment": targets.attainment, "output_tokens_per_s": targets.output_tokens_per_s}
    return limits | {name: limit for name, limit in shares.items() if limit is not None}
