"""The answer of a plan, in which every number can be traced to an evaluation."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from simulator.config.capacity import Spare
from simulator.deployment.facts import facts_of
from simulator.planner.conditions import AS_ASKED, WHOLE
from simulator.planner.evaluations import best_of_each, row_of, spares_of, text_of
from simulator.planner.explore import Evaluation
from simulator.planner.handover import hand_over
from simulator.planner.pareto import find_pareto
from simulator.planner.samples import name_band
from simulator.planner.search import SearchResult
from simulator.planner.space import (
    MEMORY,
    NO_SPARES,
    TOO_LARGE,
    Ruled,
    Spares,
    share_of_time_enough,
)
from simulator.planner.traffic import asked_rate
from simulator.planner.uncertainty.assessment import Assessment, assess_alone
from simulator.results.answer import (
    Answer,
    Basis,
    DeploymentRow,
    ModelEntry,
    RecommendedRow,
    RuledOut,
    TrafficFacts,
    WhyNot,
)
from simulator.results.answer.failures import SpareGpus
from simulator.results.answer.relations import check_answer, find_undetermined
from simulator.results.plan_sentences import headline, reasons, state_shortfall
from simulator.results.results_folder import make_verdict


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
    told = make_verdict([headline(answer), *reasons(answer)])
    lists = {name: tuple(told[name]) for name in ("reasons", "findings")}
    answer = answer.model_copy(update={"headline": told["headline"], **lists})
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
    found = SpareGpus(
        lost=text,
        availability=result.question.failures.availability,
        gpus=space.spare_gpus(*sides),
        nodes=-(-best.cluster_size.size // host_gpus),
        is_spread=host_gpus < machines.spec.gpus_per_node,
        **machines.find_whole_nodes(host_gpus, best.num_gpus, lost),
    )
    if found.availability is None:
        return found
    enough, alone = (share_of_time_enough(space, sides, counts, one) for one in (spares, Spares()))
    replicas = {
        "replicas": sum(spares),
        "replica_gpus": best.candidate.count_gpus(*spares),
        "enough_low": enough[0],
        "enough_high": enough[1],
        "alone_low": alone[0],
        "alone_high": alone[1],
    }
    return found.model_copy(update=replicas)


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


def find_nearest(result: SearchResult) -> WhyNot:
    """The deployment that misses a target by least; where nothing could be run at all, the reason
    for that.
    """
    best = _find_nearest(result, range(len(result.space.models)))
    if best is not None:
        return _describe_miss(result, best)
    texts = {name: why.text for name, why in explain_models(result).items()}
    if len(set(texts.values())) == 1:
        return WhyNot(text=next(iter(texts.values())))
    return WhyNot(text="; ".join(f"{name}: {text}" for name, text in texts.items()))


def explain_models(result: SearchResult) -> dict[str, WhyNot]:
    """The reason against every model that no deployment meets the targets with, by name."""
    met, stopped = best_of_each(result), dict[str, WhyNot]()
    for name, numbers in _list_models(result).items():
        if name not in met:
            best = _find_nearest(result, numbers)
            why = None if best is None else _describe_miss(result, best)
            stopped[name] = why or WhyNot(text=_find_reason(result, numbers))
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
    there = evaluation._replace(cluster_size=most, cost_per_hour=most.size * machines.gpu_hour)
    most_of = ""
    if most.size == machines.sizes[-1]:
        most_of = (
            f"all that {machines.bound} allows"
            if machines.bound
            else f"the most that {machines.offer.cluster} comes in"
        )
    target = outcome.binding_target
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


def state_basis(result: SearchResult) -> dict[str, Basis]:
    """Assumptions and warnings that runs of the best deployment of every model would state, by
    deployment.
    """
    stated = {}
    for one in best_of_each(result).values():
        if one.cluster_size is not None:
            opened = result.trials.open_explorer(one.candidate, WHOLE)
            facts = facts_of(opened.plan(one.cluster_size))
            basis = {key: facts[key] for key in Basis.model_fields}
            stated[text_of(result, one)] = Basis.model_validate(basis)
    return stated


def ready() -> None:
    """A worker that has this function has imported what a search needs."""
