"""The answer of a search, put together: every number in it can be traced to an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.config.capacity import Spare
from simulator.planner.assumptions import state_basis
from simulator.planner.conditions import AS_ASKED
from simulator.planner.evaluations import best_of_each, row_of, spares_of
from simulator.planner.explore import Evaluation
from simulator.planner.handover import hand_over
from simulator.planner.pareto import find_pareto
from simulator.planner.samples import name_band
from simulator.planner.search import SearchResult
from simulator.planner.space import Spares, share_of_time_enough
from simulator.planner.traffic import asked_rate
from simulator.planner.uncertainty.assessment import Assessment, assess_alone
from simulator.planner.why_not import explain_models, find_nearest
from simulator.results.answer import (
    Answer,
    DeploymentRow,
    ModelEntry,
    RecommendedRow,
    RuledOut,
    TrafficFacts,
)
from simulator.results.answer.failures import SpareGpus
from simulator.results.answer.relations import check_answer, find_undetermined
from simulator.results.plan_sentences import headline, reasons


def make_answer(
    result: SearchResult, found: Assessment | None = None, target: Path | None = None
) -> Answer:
    """The answer of a search, checked against itself.

    Args:
        found: what was assessed; absent = only what takes no other conditions.
        target: the folder that scenario files will be written to.
    """
    found, first = found or assess_alone(result), next(iter(result.met), None)
    rows = {
        one.candidate: row_of(result, one, found.bands.get(one.candidate)) for one in result.met
    }
    machines, ruled = result.space.machines, result.ruled
    answer = Answer(
        name=result.question.name,
        seed=result.question.seed,
        currency=result.question.power.currency,
        targets=result.question.targets.limits,
        models=tuple(
            dict.fromkeys(
                ModelEntry(name=model.name, is_moe=model.moe is not None)
                for model in result.space.models
            )
        ),
        spare=_describe_spare(result, first),
        clusters=tuple(one.offer.cluster for one in machines),
        num_simulated=result.num_simulated,
        num_legal=result.num_legal,
        num_ruled_out=sum(ruled.counts.values()),
        ruled_out=tuple(
            RuledOut(reason=reason, count=count, example=ruled.examples[reason])
            for reason, count in ruled.counts.items()
        ),
        traffic=_describe_traffic(result),
        clusters_ruled_out={one.offer.cluster: one.beyond for one in machines if one.beyond},
        why_not_models=explain_models(result),
        best_of_each_model={
            name: rows[one.candidate] for name, one in best_of_each(result).items()
        },
        candidates=tuple(rows.values()),
        pareto=find_pareto(result, rows),
        crossover=found.crossover,
        recommended=None if first is None else _recommend(rows[first.candidate], found),
        sizes=found.sizes,
        basis=state_basis(result),
        handover=None if first is None else hand_over(result, target),
        why_not=find_nearest(result) if first is None else None,
        sensitivity=tuple(found.sensitivity),
        losses=tuple(found.losses),
        idle=found.idle,
        spare_nodes=tuple(found.spare_nodes),
        confidence=found.confidence,
        moe_vs_dense=found.moe_vs_dense,
    )
    answer = answer.model_copy(update={"undetermined": find_undetermined(answer)})
    told = {"headline": str(headline(answer)), "reasons": tuple(map(str, reasons(answer)))}
    answer = answer.model_copy(update=told)
    check_answer(answer)
    return answer


def _recommend(row: DeploymentRow, found: Assessment) -> RecommendedRow:
    """The row of the recommended deployment, with its headroom."""
    sure = found.confidence
    ends = (sure.headroom_low, sure.headroom_high) if sure else None
    return RecommendedRow.model_validate(
        {
            **row.model_dump(),
            "headroom": found.headroom.factor,
            "headroom_is_least": found.headroom.is_least,
            **(name_band("headroom", found.headroom.factor, ends) if ends else {}),
        }
    )


def _describe_spare(result: SearchResult, best: Evaluation | None) -> SpareGpus:
    """GPUs that the recommended deployment holds free, and what whole nodes would take where
    replicas are rented on nodes of their own.
    """
    lost = result.question.spare
    text = str(lost) if lost != Spare() else ""
    if best is None or best.cluster_size is None:
        return SpareGpus(lost=text, availability=result.question.failures.availability)
    sides, space = best.candidate.sides, result.space
    machines, host_gpus = space.machines_at(sides[0]), space.host_gpus(*sides)
    counts, spares = best.cluster_size[1:], spares_of(result, best)
    rates = result.question.failures
    replicas: dict[str, Any] = {}
    if rates.availability is not None:
        enough, alone = (
            share_of_time_enough(space, sides, counts, one) for one in (spares, Spares())
        )
        replicas = {
            "availability": rates.availability,
            "replicas": sum(spares),
            "replica_gpus": best.candidate.count_gpus(*spares),
            "enough_low": enough[0],
            "enough_high": enough[1],
            "alone_low": alone[0],
            "alone_high": alone[1],
        }
    return SpareGpus(
        lost=text,
        **replicas,
        gpus=space.spare_gpus(*sides),
        nodes=-(-best.cluster_size.size // host_gpus),
        is_spread=host_gpus < machines.spec.gpus_per_node,
        **machines.find_whole_nodes(host_gpus, best.num_gpus, lost),
    )


def _describe_traffic(result: SearchResult) -> TrafficFacts:
    traffic, some = result.traffic, result.trials.read_traffic(AS_ASKED).num_requests
    return TrafficFacts(
        rate_per_s=traffic.rate_per_s,
        asked_rate_per_s=asked_rate(result.question, result.space.folder),
        num_requests=traffic.num_requests,
        lead_requests=traffic.lead,
        lasts_s=traffic.duration_s,
        stay_s=traffic.stay_s,
        is_steady=traffic.is_steady,
        notes=traffic.trace.notes,
        num_on_stretch=some if some < traffic.num_requests else None,
        lengthened_from=result.asked_requests,
        mean_input=traffic.num_input,
        mean_output=traffic.num_output,
    )
