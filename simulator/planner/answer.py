"""The answer of a search, put together: every number in it can be traced to an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.config.capacity import Spare
from simulator.planner.assumptions import state_basis
from simulator.planner.crossover import map_crossover
from simulator.planner.evaluations import best_of_each, headroom_of, row_of
from simulator.planner.explore import Evaluation, resize_candidate
from simulator.planner.handover import hand_over
from simulator.planner.losses import whole_nodes
from simulator.planner.pareto import find_pareto
from simulator.planner.samples import name_band
from simulator.planner.search import SearchResult
from simulator.planner.sizes import find_sizes
from simulator.planner.why_not import explain_models, find_nearest
from simulator.results.answer import Answer, DeploymentRow, ModelEntry, RuledOut, TrafficFacts
from simulator.results.answer.failures import SpareGpus
from simulator.results.plan_sentences.headline import headline
from simulator.results.plan_sentences.reasons import reasons


def make_answer(
    result: SearchResult, parts: dict[str, Any] | None = None, target: Path | None = None
) -> Answer:
    """The answer of a search.

    Args:
        parts: what :func:`simulator.planner.uncertainty.assessment.assess` found.
        target: the folder that scenario files will be written to.
    """
    met = [evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None]
    parts = dict(parts or {})
    bands = parts.pop("bands", None) or [{} for _ in met]
    rows = {
        evaluation.candidate: row_of(result, evaluation, band)
        for evaluation, band in zip(met, bands, strict=True)
    }
    parts["crossover"] = parts["crossover"] if "crossover" in parts else map_crossover(result)
    parts |= _recommend(result, met[0], rows, parts, target) if met else _refuse(result)
    answer = Answer.model_validate(
        {
            "name": result.question.name,
            "seed": result.question.seed,
            "currency": result.question.power.currency,
            "targets": _list_targets(result),
            "models": [
                ModelEntry(name=model.name, is_moe=model.moe is not None)
                for model in result.space.models
            ],
            "spare": _describe_spare(result, met[0] if met else None),
            "clusters": [machines.offer.cluster for machines in result.space.machines],
            "num_simulated": _count_simulated(result),
            "num_legal": result.num_legal,
            "num_ruled_out": sum(result.ruled.counts.values()),
            "ruled_out": [
                RuledOut(reason=reason, count=count, example=result.ruled.examples[reason])
                for reason, count in result.ruled.counts.items()
            ],
            "traffic": _describe_traffic(result),
            "clusters_ruled_out": {
                one.offer.cluster: one.beyond for one in result.space.machines if one.beyond
            },
            "why_not_models": explain_models(result),
            "best_of_each_model": {
                name: rows[evaluation.candidate]
                for name, evaluation in best_of_each(result).items()
            },
            "candidates": tuple(rows.values()),
            "pareto": find_pareto(result, rows),
            **parts,
        }
    )
    return answer.model_copy(update={"headline": headline(answer), "reasons": reasons(answer)})


def _recommend(
    result: SearchResult,
    first: Evaluation,
    rows: dict[Any, DeploymentRow],
    parts: dict[str, Any],
    target: Path | None,
) -> dict[str, Any]:
    """The parts that an answer with a recommendation has."""
    room = parts.pop("headroom") if "headroom" in parts else headroom_of(result, first)
    sure = parts.get("confidence")
    ends = name_band("headroom", room, (sure.headroom_low, sure.headroom_high)) if sure else {}
    return {
        "recommended": {**rows[first.candidate].model_dump(), "headroom": room, **ends},
        "sizes": parts["sizes"] if "sizes" in parts else find_sizes(result, first),
        "basis": state_basis(result),
        "handover": hand_over(result, target),
    }


def _refuse(result: SearchResult) -> dict[str, Any]:
    """The parts that an answer without a recommendation has."""
    return {"why_not": find_nearest(result)}


def _count_simulated(result: SearchResult) -> int:
    """Searches for a size; one for deployments whose first round was of all requests, however many
    replicas they turned out to need.
    """
    first = [
        replace(evaluation, candidate=resize_candidate(evaluation)) for evaluation in result.first
    ]
    return len(first) + sum(evaluation not in first for evaluation in result.evaluations)


def _describe_spare(result: SearchResult, best: Evaluation | None) -> SpareGpus:
    """GPUs that the recommended deployment holds free, and what whole nodes would take where
    replicas are rented on nodes of their own.
    """
    lost = result.question.spare
    text = str(lost) if lost != Spare() else ""
    if best is None or best.cluster_size is None:
        return SpareGpus(lost=text)
    sides, space = (best.candidate.shape, best.candidate.prefill), result.space
    machines, host_gpus = space.machines[best.candidate.shape.machines], space.host_gpus(*sides)
    return SpareGpus(
        lost=text,
        gpus=space.spare_gpus(*sides),
        nodes=-(-best.cluster_size.size // host_gpus),
        is_spread=host_gpus < machines.spec.gpus_per_node,
        **whole_nodes(machines, host_gpus, best.num_gpus, lost)._asdict(),
    )


def _describe_traffic(result: SearchResult) -> TrafficFacts:
    traffic = result.traffic
    return TrafficFacts(
        rate_per_s=traffic.rate_per_s,
        num_requests=traffic.num_requests,
        lead_requests=traffic.lead,
        lasts_s=traffic.duration_s,
        stay_s=traffic.stay_s,
        is_steady=traffic.is_steady,
        lengthened_from=result.asked_requests,
        mean_input=traffic.num_input,
        mean_output=traffic.num_output,
    )


def _list_targets(result: SearchResult) -> dict[str, float]:
    """Limits by target, named as in an outcome."""
    targets = result.question.targets
    limits = {
        f"{name}.{level}": limit
        for name in ("ttft_s", "tpot_s", "e2e_s")
        for level, limit in getattr(targets, name).limits().items()
    }
    shares = {"attainment": targets.attainment, "output_tokens_per_s": targets.output_tokens_per_s}
    return limits | {name: limit for name, limit in shares.items() if limit is not None}
